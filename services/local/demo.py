"""The demo's stage and its first act: one alert, from webhook to a repaired workload. `demo_story` tells it.

The demo types the same commands a person would type and believes nothing it was not shown: each act is checked, and the
first thing that did not truly happen raises DemoError.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console

from services.local.checkout import Workload
from services.local.endpoints import webhook_headers
from services.local.files import free_port_base
from services.local.process import Program, tuned, write_spec

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TARGET = "svc:demo/checkout"
PRODUCTION = "svc:production/checkout"
# Alertmanager's fingerprint is a hash of an alert's labels.
FINGERPRINTS = {
    ("CheckoutDown", "demo"): "6f1c2a9be07d4c35",
    ("CheckoutDown", "production"): "0b7d52f4e1c98a36",
    ("CheckoutTimeouts", "production"): "b1c07ae6d2953f48",
    ("CheckoutOddRequests", "demo"): "94e3f0a85b6d7c12",
}
RESTART = "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload"


class DemoError(Exception):
    """Something that should have happened did not; the text says what."""


def check(fact: bool, otherwise: str) -> None:  # noqa: FBT001  a fact is a boolean
    """Raise DemoError with OTHERWISE unless FACT holds."""
    if not fact:
        raise DemoError(otherwise)


@dataclass(frozen=True, slots=True)
class World:
    """Where the demo happens."""

    console: Console
    folder: Path
    started: float

    @property
    def state(self) -> Path:
        """The mesh's state folder."""
        return self.folder / "mesh"

    def say(self, text: str) -> None:
        """Narrate one act."""
        self.console.print(f"[dim]{time.monotonic() - self.started:5.1f}s[/dim]  {text}")

    def act(self, title: str) -> None:
        """Begin an act."""
        self.console.print(f"\n[bold]{title}[/bold]")

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run an `opsmesh` command on the mesh of the demo."""
        command = [sys.executable, "-m", "services.cli", *words, "--state", str(self.state)]
        environment = os.environ | environment
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)  # noqa: S603  our own command

    def ask(self, *words: str) -> Any:
        """Run an `opsmesh` command with --json and return what it answered. Raises DemoError when it fails."""
        done = self.run(*words, "--json")
        check(done.returncode == 0, f"`opsmesh {' '.join(words)}` failed:\n{done.stderr or done.stdout}")
        return json.loads(done.stdout)

    def show(self, *words: str) -> None:
        """Run an `opsmesh` command and let the person see what it prints."""
        done = self._shown(*words)
        check(done.returncode == 0, f"`opsmesh {' '.join(words)}` failed:\n{done.stderr}")

    def show_refusal(self, reason: str, *words: str) -> None:
        """Run an `opsmesh` command that must be refused for REASON, and let the person see the refusal."""
        done = self._shown(*words)
        refused = done.returncode == 1 and reason in done.stderr
        check(refused, f"`opsmesh {' '.join(words)}` was not refused as {reason}:\n{done.stdout}{done.stderr}")
        self.console.print(done.stderr.rstrip(), style="yellow", markup=False, highlight=False)

    def _shown(self, *words: str) -> subprocess.CompletedProcess[str]:
        self.console.print(f"\n[bold cyan]$ opsmesh {shlex.join(words)}[/bold cyan]")
        colours = {"FORCE_COLOR": "1"} if self.console.is_terminal else {}
        done = self.run(*words, COLUMNS=str(self.console.width), **colours)
        self.console.file.write(done.stdout)
        self.console.file.flush()
        return done


def health(workload: Workload) -> int:
    """Return the HTTP status checkout answers with; 0 when it does not."""
    try:
        return httpx.get(workload.health_url, timeout=2).status_code
    except httpx.HTTPError:
        return 0


def alert(
    started: datetime,
    environment: str = "demo",
    name: str = "CheckoutDown",
    summary: str = "checkout answers 503",
    description: str = "The checkout service fails its health check.",
) -> dict[str, Any]:
    """Return an Alertmanager v4 notification about checkout, as its documentation describes it."""
    labels = {"alertname": name, "service": "checkout", "env": environment, "severity": "critical"}
    notes = {"summary": summary, "description": description}
    return {
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{name}"}}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "opsmesh",
        "groupLabels": {"alertname": name},
        "commonLabels": labels,
        "commonAnnotations": notes,
        "externalURL": "http://alertmanager.example:9093",
        "alerts": [
            {
                "status": "firing",
                "labels": labels,
                "annotations": notes,
                "startsAt": started.isoformat().replace("+00:00", "Z"),
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "http://prometheus.example:9090/graph?g0.expr=up",
                "fingerprint": FINGERPRINTS[name, environment],
            }
        ],
    }


def write_config(config: Path, workload: Workload, production: Workload | None = None) -> None:
    """Lay out the demo's configuration: what ships, with the demo's own inventory, policies and backends."""
    workloads = {TARGET: workload} | ({PRODUCTION: production} if production else {})
    shutil.copytree(DEPLOY, config, ignore=shutil.ignore_patterns("demo"))
    shutil.copy(DEPLOY / "demo" / "inventory.yaml", config / "inventory.yaml")
    shutil.rmtree(config / "policies")
    (config / "policies").mkdir()
    shutil.copy(DEPLOY / "demo" / "policies.yaml", config / "policies" / "demo.yaml")
    backends = yaml.safe_load((DEPLOY / "backends.yaml").read_text(encoding="utf-8"))
    backends["workloads"] = [
        {"target_id": target, "health_url": one.health_url, "supervisord": one.backend()}
        for target, one in workloads.items()
    ]
    backends["logs"] = [
        {"targets": [{"target_id": target}], "json_lines": {"paths": [str(one.log)]}}
        for target, one in workloads.items()
    ]
    (config / "backends.yaml").write_text(yaml.safe_dump(backends), encoding="utf-8")


def write_models(config: Path) -> None:
    """Add the demo's models: recordings, which whatever shows their answers says."""
    shutil.copy(DEPLOY / "demo" / "models.yaml", config / "models.yaml")
    shutil.copytree(DEPLOY / "demo" / "recordings", config / "recordings")


def start_mesh(world: World, config: Path) -> subprocess.Popen[bytes]:
    """Start `opsmesh up` and wait until its endpoints appear, at most 120 s."""
    command = [sys.executable, "-m", "services.cli", "up", "--state", str(world.state), "--config", str(config)]
    command += ["--port-base", str(free_port_base())]
    # On a leash: it ends with the demo, also when that is killed.
    leashed = write_spec(Program("up", command, env=tuned()), world.folder)
    with (world.folder / "up.log").open("wb") as log:
        mesh = subprocess.Popen(leashed, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)  # noqa: S603  our own command
    with world.console.status("starting PostgreSQL, Valkey, Temporal and eight services ..."):
        try:
            wait_for(lambda: (world.state / "endpoints.json").exists() or mesh.poll() is not None, 120, "the mesh")
            check(mesh.poll() is None, f"the mesh ended:\n{(world.folder / 'up.log').read_text()[-3000:]}")
        except BaseException:
            stop_mesh(mesh)
            raise
    return mesh


def stop_mesh(mesh: subprocess.Popen[bytes]) -> int:
    """Ask the mesh to stop and return its exit code; kill it after 90 s."""
    if mesh.poll() is None:
        mesh.send_signal(signal.SIGTERM)
    try:
        return mesh.wait(90)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(mesh.pid, signal.SIGKILL)
        return mesh.wait(5)


def wait_for(fact: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until FACT holds; raise DemoError after SECONDS."""
    until = time.monotonic() + seconds
    while not fact():
        check(time.monotonic() < until, f"{what} did not come within {seconds:g} s")
        time.sleep(0.1)


def post_alert(world: World, body: dict[str, Any], times: int = 1) -> None:
    """Post BODY to the bridge that many TIMES, as an impatient sender does; each must be accepted."""
    endpoints = json.loads((world.state / "endpoints.json").read_text(encoding="utf-8"))
    hook = endpoints["webhooks"]["alertmanager"]
    content = json.dumps(body).encode()
    for number in range(1, times + 1):
        began = time.monotonic()
        answer = httpx.post(hook["url"], content=content, headers=webhook_headers(hook, content), timeout=5)
        took = (time.monotonic() - began) * 1000
        check(answer.status_code == httpx.codes.ACCEPTED, f"the bridge answered {answer.status_code}: {answer.text}")
        world.say(f"webhook {number}: [green]202[/green] after {took:.0f} ms, on disk")


def await_repair(world: World) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Wait until the incident is resolved; return incident, decision and execution, each checked."""
    until = time.monotonic() + 60
    while True:
        incidents = world.ask("incidents", "list")["incidents"]
        check(len(incidents) <= 1, f"{len(incidents)} incidents opened instead of one")
        if incidents and incidents[0]["state"] == "STATE_RESOLVED":
            break
        check(time.monotonic() < until, f"the incident was not resolved within 60 s: {incidents}")
    incident = incidents[0]
    check(int(incident["signal_count"]) == 3, f"the incident has {incident['signal_count']} signals instead of 3")  # noqa: PLR2004  three were posted
    check(int(incident["duplicate_count"]) == 2, f"{incident['duplicate_count']} duplicates instead of 2")  # noqa: PLR2004  two repeat the first
    decision = world.ask("decisions", "show", incident["decision_id"])
    check(bool(decision["rule_id"]), "no rule decided")
    check(decision["model_call_count"] == 0, "a model was called")
    execution = world.ask("executions", "show", decision["execution_id"])
    check(execution["state"] == "STATE_SUCCEEDED", f"the playbook ended as {execution['state']}")
    restarts = [step for step in execution["steps"] if step["tool"] == RESTART]
    check(
        [step["state"] for step in restarts] == ["STATE_SUCCEEDED"], f"RestartWorkload did not succeed once: {restarts}"
    )
    return incident, decision, execution


def check_trail(world: World, incident: dict[str, Any]) -> None:
    """Check that the audit log holds the intent of the restart and, after it, its outcome."""
    until = time.monotonic() + 60
    while True:
        events = world.ask("audit", "list", "--incident", incident["incident_id"])["events"]
        phases = [(event["phase"], event["outcome"]) for event in events if event["action"] == RESTART]
        if phases == [("PHASE_INTENT", "OUTCOME_UNSPECIFIED"), ("PHASE_OUTCOME", "OUTCOME_SUCCEEDED")]:
            return
        check(time.monotonic() < until, f"the trail of the restart is not intent, then outcome: {phases}")


def first_act(world: World, workload: Workload) -> None:
    """Break checkout in `demo`; three posts of one alert, and the rule's playbook repairs it, once."""
    httpx.post(workload.break_url, timeout=5)
    check(health(workload) == httpx.codes.SERVICE_UNAVAILABLE, "checkout did not break")
    world.say("checkout is broken: it answers [red]503[/red] to its users")
    world.say("Alertmanager notices and posts the same webhook three times")
    posted = time.monotonic()
    post_alert(world, alert(datetime.now(UTC)), times=3)
    wait_for(lambda: health(workload) == httpx.codes.OK, 45, "the repair of checkout")
    took = time.monotonic() - posted
    world.say(f"checkout answers [green]200[/green] again, {took:.1f} s after the first webhook")
    incident, decision, execution = await_repair(world)
    starts = workload.start_count()
    check(starts == 2, f"the process manager started checkout {starts} times instead of twice")  # noqa: PLR2004  once at first, once by the playbook
    world.say(
        f"one incident; two of three signals were duplicates; rule [bold]{decision['rule_id']}[/bold] "
        f"(rule set {decision['rule_set_version']}) decided, no model was called"
    )
    check_trail(world, incident)
    world.show("incidents", "show", incident["incident_id"])
    world.show("decisions", "show", decision["decision_id"])
    world.show("executions", "show", execution["execution_id"])
    world.show("audit", "list", "--incident", incident["incident_id"])
