"""The one mesh of the stories: real stores, eight services, real workloads, and a person with a certificate."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import grpc
import grpc.aio
import httpx
import psutil
import yaml
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_fixed

from opsmesh.agents.v1 import agent_service_pb2_grpc, model_service_pb2_grpc
from opsmesh.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from opsmesh.automation.v1 import automation_service_pb2, automation_service_pb2_grpc
from opsmesh.gateway.v1 import effect_service_pb2_grpc
from opsmesh.guardrails.v1 import approval_service_pb2_grpc, guardrails_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from opsmesh.router.v1 import decision_service_pb2, decision_service_pb2_grpc
from services.local import demo, supervise
from services.local.checkout import NAME, Workload, start_workload, stop_workload
from services.local.endpoints import webhook_headers
from services.local.files import LocalError, free_port, free_port_base
from services.local.layout import Mesh
from services.local.process import Program, write_spec
from services.local.reach import channels

T = TypeVar("T")
Incident = ingest_service_pb2.Incident
Execution = automation_service_pb2.Execution
Event = audit_service_pb2.AuditEvent
RESTART = demo.RESTART
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
SPARE = "spare"
TILLS = tuple(f"till-{number}" for number in range(1, 6))
# Long enough to be seen waiting, and to be reminded of, on a busy machine.
APPROVAL_SECONDS = 10
# Like production, but people have time to answer, and no story lasts until they are reminded.
GUARDED = "guarded"
GUARDED_SECONDS = 900


async def until(fact: Callable[[], Awaitable[T]], what: str, seconds: float = 60, pause: float = 0.05) -> T:
    """Return the first true answer of FACT; after SECONDS fail with WHAT and the last answer."""

    async def ask() -> T:
        # Given a lambda, the retrying library would take its coroutine for the answer.
        return await fact()

    try:
        retrying = AsyncRetrying(
            retry=retry_if_result(lambda answer: not answer), stop=stop_after_delay(seconds), wait=wait_fixed(pause)
        )
        return await retrying(ask)
    except RetryError as error:
        raise AssertionError(f"{what}: not within {seconds:g} s; last seen: {error.last_attempt.result()!r}") from None


@dataclass(frozen=True, slots=True)
class Stubs:
    """The APIs, as the operator calls them."""

    ingest: "ingest_service_pb2_grpc.IngestServiceAsyncStub"
    router: "decision_service_pb2_grpc.DecisionServiceAsyncStub"
    automation: "automation_service_pb2_grpc.AutomationServiceAsyncStub"
    guardrails: "guardrails_service_pb2_grpc.GuardrailsServiceAsyncStub"
    approvals: "approval_service_pb2_grpc.ApprovalServiceAsyncStub"
    effects: "effect_service_pb2_grpc.EffectServiceAsyncStub"
    audit: "audit_service_pb2_grpc.AuditServiceAsyncStub"
    models: "model_service_pb2_grpc.ModelServiceAsyncStub"
    agents: "agent_service_pb2_grpc.AgentServiceAsyncStub"


@dataclass(frozen=True, slots=True)
class World:
    """A running mesh, and what the stories do with it and ask of it."""

    mesh: Mesh
    endpoints: Mapping[str, Any]
    workloads: Mapping[str, Workload]
    stubs: Stubs
    http: httpx.AsyncClient
    reader: "asyncpg.Pool[asyncpg.Record]"

    async def post(self, source: str, body: object, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Post a webhook as SOURCE does, with its secret."""
        hook = self.endpoints["webhooks"][source]
        content = json.dumps(body).encode()
        proof = webhook_headers(hook, content) | {"Content-Type": "application/json"}
        return await self.http.post(hook["url"], content=content, headers=proof | dict(headers or {}))

    async def accepted(self, source: str, body: object, headers: Mapping[str, str] | None = None) -> str:
        """Post a webhook that must be accepted; return the id of its one signal."""
        answer = await self.post(source, body, headers)
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        (result,) = answer.json()["results"]
        return str(result["signal_id"])

    async def rows(self, query: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """Read with the read-only role."""
        return list(await self.reader.fetch(query, *arguments, timeout=10))

    async def value(self, query: str, *arguments: object) -> Any:
        """Read one value with the read-only role."""
        return await self.reader.fetchval(query, *arguments, timeout=10)

    async def recorded(self, signal_id: str) -> tuple[str, str]:
        """Wait for a signal's row; return its disposition and its incident."""

        async def row() -> Sequence[asyncpg.Record]:
            query = "SELECT disposition, coalesce(incident_id::text, '') FROM ingest.signals WHERE signal_id = $1::uuid"
            return await self.rows(query, signal_id)

        (found,) = await until(row, f"the row of signal {signal_id}")
        return found[0], found[1]

    async def incident(self, incident_id: str) -> Incident:
        """Read an incident."""
        request = ingest_service_pb2.GetIncidentRequest(incident_id=incident_id)
        return (await self.stubs.ingest.GetIncident(request)).incident

    async def reaches(self, incident_id: str, *states: "Incident.State.ValueType", seconds: float = 60) -> Incident:
        """Wait until an incident is in one of STATES."""
        seen: list[str] = []

        async def look() -> Incident | None:
            try:
                found = await self.incident(incident_id)
            except grpc.aio.AioRpcError as error:
                # A busy or restarting ingest or PostgreSQL may answer late: ask again.
                if error.code() not in AWAY:
                    raise
                seen.append(str(error.details()))
                return None
            seen.append(f"{Incident.State.Name(found.state)}: {found.state_detail}")
            return found if found.state in states else None

        try:
            found = await until(look, f"incident {incident_id}", seconds)
        except AssertionError:
            raise AssertionError(f"incident {incident_id} went: {list(dict.fromkeys(seen))}") from None
        assert found is not None
        return found

    async def resolve(self, incident_id: str) -> Incident:
        """Resolve an incident, as a person does."""
        request = ingest_service_pb2.ResolveIncidentRequest(
            request_id=str(uuid.uuid4()), incident_id=incident_id, reason="looked at it"
        )
        return (await self.stubs.ingest.ResolveIncident(request)).incident

    async def decisions(self, incident_id: str) -> Sequence[decision_service_pb2.Decision]:
        """Return all decisions about an incident, oldest first."""
        request = decision_service_pb2.ListDecisionsRequest(incident_id=incident_id, page_size=100)
        found = (await self.stubs.router.ListDecisions(request)).decisions
        return sorted(found, key=lambda one: one.revision)

    async def execution(self, execution_id: str) -> Execution:
        """Read an execution."""
        request = automation_service_pb2.GetExecutionRequest(execution_id=execution_id)
        return (await self.stubs.automation.GetExecution(request)).execution

    async def events(self, incident_id: str, action: str = "") -> Sequence[Event]:
        """Return the audit events about an incident, oldest first."""
        request = audit_service_pb2.ListEventsRequest(incident_id=incident_id, action=action, page_size=1000)
        return sorted((await self.stubs.audit.ListEvents(request)).events, key=lambda one: one.sequence)

    def notices(self, incident_id: str) -> Sequence[Mapping[str, str]]:
        """Return what the gateway's inbox holds about an incident."""
        inbox = self.mesh.state / "services" / "gateway" / "inbox.jsonl"
        lines = inbox.read_text(encoding="utf-8").splitlines() if inbox.exists() else []
        return [one for one in map(json.loads, lines) if one["incident_id"] == incident_id]

    async def health(self, workload: str) -> int:
        """Return the HTTP status a workload's health endpoint answers with; 0 when it does not."""
        try:
            return (await self.http.get(self.workloads[workload].health_url)).status_code
        except httpx.HTTPError:
            return 0

    async def break_down(self, workload: str) -> None:
        """Break a workload for real."""
        await self.http.post(self.workloads[workload].break_url)
        assert await self.health(workload) == httpx.codes.SERVICE_UNAVAILABLE

    async def mend(self, workload: str) -> None:
        """Restart a workload past the mesh: for a story that must end with it broken."""
        instance = self.workloads[workload].instance
        with suppress(LocalError):
            await asyncio.to_thread(supervise.call, instance, "supervisor.stopProcess", NAME)
        await asyncio.to_thread(supervise.call, instance, "supervisor.startProcess", NAME)
        # A busy machine takes its time until a process that counts as started answers.
        await until(lambda: self.health(workload), f"an answer of {workload} after it was mended")

    async def program(self, verb: str, name: str) -> None:
        """Stop or start a program of the mesh (`stores:postgres`, `services:audit`) through its supervisor."""
        # not waiting: a start would take until the program counts as stable
        await asyncio.to_thread(supervise.call, self.mesh.supervisor, f"supervisor.{verb}Process", name, verb == "stop")

    def process(self, name: str) -> psutil.Process | None:
        """Return the process of a program of the mesh, None while it does not run."""
        for one in supervise.status(self.mesh.supervisor):
            if one.name == name and one.pid:
                with suppress(psutil.NoSuchProcess):
                    return psutil.Process(one.pid)
        return None

    async def readiness(self) -> tuple[int, Mapping[str, Any]]:
        """Return what the bridge's /readyz answers."""
        answer = await self.http.get(f"{self.endpoints['bridge']}/readyz")
        return answer.status_code, answer.json()

    async def whole(self) -> None:
        """Wait until the bridge says that nothing is degraded."""

        async def look() -> bool:
            return await self.readiness() == (httpx.codes.OK, {"status": "ok", "degraded": []})

        await until(look, "a whole mesh", 90)


def lay_out(config: Path, workloads: Mapping[str, Workload]) -> None:
    """Write the demo's configuration, with more workloads and environments: observed, and with approvals.

    In `production` an approval expires soon, in `guarded` late.
    """
    demo.write_config(config, workloads[NAME])
    backends = yaml.safe_load((config / "backends.yaml").read_text(encoding="utf-8"))
    inventory = yaml.safe_load((config / "inventory.yaml").read_text(encoding="utf-8"))
    policies = yaml.safe_load((config / "policies" / "demo.yaml").read_text(encoding="utf-8"))
    inventory["entries"].append({"target_id": "svc:observed/checkout", "kind": "service", "environment": "observed"})
    guarded = {"target_id": f"svc:{GUARDED}/checkout", "kind": "service", "environment": GUARDED}
    inventory["entries"].append(guarded | {"min_risk": "RISK_HIGH"})
    inventory["entries"] += [
        {"target_id": f"svc:demo/{one}", "kind": "service", "environment": "demo"} for one in TILLS
    ]
    targets = {f"svc:{one}/checkout": SPARE for one in ("observed", "production", GUARDED)} | {
        f"svc:demo/{one}": one for one in TILLS
    }
    backends["workloads"] += [
        {"target_id": target, "health_url": workloads[one].health_url, "supervisord": workloads[one].backend()}
        for target, one in targets.items()
    ]
    observe = {"environments": ["observed"], "access": ["ACCESS_WRITE"]}
    policies["rules"].append({"rule_id": "observe", "match": observe, "verdict": "VERDICT_OBSERVE"})
    for rule in policies["rules"]:
        if rule["verdict"] == "VERDICT_REQUIRE_APPROVAL":
            rule["approval"]["ttl_duration"] = f"{APPROVAL_SECONDS}s"
            rule["match"]["environments"] = ["production"]
    policies["rules"].append(
        {
            "rule_id": "guarded-writes",
            "match": {"environments": [GUARDED], "access": ["ACCESS_WRITE"]},
            "verdict": "VERDICT_REQUIRE_APPROVAL",
            "approval": {"ttl_duration": f"{GUARDED_SECONDS}s"},
        }
    )
    for cap in policies["notice_caps"]:
        cap["per_hour"] = 2000
    rules = config / "rules" / "checkout.yaml"
    rules.write_text(rules.read_text(encoding="utf-8").replace("max_per_hour: 3", "max_per_hour: 100000"))
    for name, content in (
        ("backends.yaml", backends),
        ("inventory.yaml", inventory),
        ("policies/demo.yaml", policies),
    ):
        (config / name).write_text(yaml.safe_dump(content), encoding="utf-8")


@asynccontextmanager
async def running_workloads(folder: Path) -> AsyncIterator[Mapping[str, Workload]]:
    """Run every workload under a supervisord of its own, all started at once."""
    running: dict[str, Workload] = {}

    async def start(name: str) -> None:
        running[name] = await start_workload(folder / name, free_port())

    try:
        await asyncio.gather(*map(start, (NAME, SPARE, *TILLS)))
        yield running
    finally:
        await asyncio.gather(*map(stop_workload, running.values()))


def last_words(log: Path) -> str:
    """Return the end of a log."""
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


@asynccontextmanager
async def running_mesh(state: Path, config: Path, log: Path) -> AsyncIterator[Mesh]:
    """Run `opsmesh up` as a newcomer does, and stop it; it must stop cleanly."""
    base = free_port_base()
    command = [sys.executable, "-m", "services.cli", "up", "--state", str(state), "--config", str(config)]
    # on a leash: it ends with us, also when we are killed
    leashed = write_spec(Program("up", [*command, "--port-base", str(base)]), config.parent / "run")
    with log.open("wb") as output:
        up = subprocess.Popen(  # noqa: ASYNC220  it outlives the loop that starts it
            leashed, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:

        async def is_up() -> bool:
            return (state / "endpoints.json").exists() or up.poll() is not None

        await until(is_up, "the mesh", 120)
        assert up.poll() is None, last_words(log)
        yield Mesh(state, config, port_base=base)
    finally:
        if up.poll() is None:
            up.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.to_thread(up.wait, 90)
        except subprocess.TimeoutExpired:
            os.killpg(up.pid, signal.SIGKILL)
            code = up.wait(5)
    assert code == 0, last_words(log)


@asynccontextmanager
async def connected(mesh: Mesh, workloads: Mapping[str, Workload]) -> AsyncIterator[World]:
    """Give the operator's view of a running mesh."""
    endpoints = json.loads(mesh.endpoints_file.read_text(encoding="utf-8"))
    async with (
        channels(mesh) as channel,
        httpx.AsyncClient(timeout=10, trust_env=False) as http,
        asyncpg.create_pool(endpoints["postgres"], min_size=0, max_size=4, timeout=10) as reader,
    ):
        stubs = Stubs(
            ingest=ingest_service_pb2_grpc.IngestServiceStub(channel("ingest")),
            router=decision_service_pb2_grpc.DecisionServiceStub(channel("router")),
            automation=automation_service_pb2_grpc.AutomationServiceStub(channel("automation")),
            guardrails=guardrails_service_pb2_grpc.GuardrailsServiceStub(channel("guardrails")),
            approvals=approval_service_pb2_grpc.ApprovalServiceStub(channel("guardrails")),
            effects=effect_service_pb2_grpc.EffectServiceStub(channel("gateway")),
            audit=audit_service_pb2_grpc.AuditServiceStub(channel("audit")),
            models=model_service_pb2_grpc.ModelServiceStub(channel("agents")),
            agents=agent_service_pb2_grpc.AgentServiceStub(channel("agents")),
        )
        yield World(mesh, endpoints, workloads, stubs, http, reader)


def leftovers(folder: Path) -> Sequence[str]:
    """Return the processes that name FOLDER in their command or environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(folder) in text for text in (*process.cmdline(), *process.environ().values())):
                found.append(f"{process.pid} {process.name()}")
    return found


@asynccontextmanager
async def running_world(folder: Path, recordings: Path | None = None) -> AsyncIterator[World]:
    """Run workloads and mesh; at the end everything is stopped and nothing is left behind.

    Without `recordings` it has no models.
    """
    async with running_workloads(folder / "workloads") as workloads:
        lay_out(folder / "config", workloads)
        if recordings:
            role = {"model": "recorded", "recordings_folder": str(recordings)}
            models = yaml.safe_dump({"roles": {"routing": role, "agent": role}})
            (folder / "config" / "models.yaml").write_text(models, encoding="utf-8")
        async with (
            running_mesh(folder / "mesh", folder / "config", folder / "up.log") as mesh,
            connected(mesh, workloads) as world,
        ):
            yield world
    assert leftovers(folder) == []
    shutil.rmtree(folder)
