"""A real Prometheus and a pair of real Alertmanagers, from the system's packages: senders that we did not write."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from services.local.files import free_port
from services.local.process import Program, write_spec
from tests.flows.world import last_words, until
from tests.gateway.web import Asked, web

PROMETHEUS: Final = shutil.which("prometheus")
# Debian names it after its project.
ALERTMANAGER: Final = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
MISSING: Final = " and ".join(
    name for name, found in (("prometheus", PROMETHEUS), ("alertmanager", ALERTMANAGER)) if found is None
)
BOOT_SECONDS: Final = 60
# So slow that each peer notifies before it hears that the other did: what happens to a pair on a bad day, every time.
LATE: Final = "10m"


@dataclass(frozen=True, slots=True)
class Sender:
    """One running program with its HTTP API."""

    name: str
    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    async def ask(self, path: str) -> Any:
        """Return what its API answers, None while it does not."""
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            try:
                answer = await http.get(f"{self.url}{path}")
            except httpx.HTTPError:
                return None
            return answer.json() if answer.is_success else None

    async def failures(self) -> float:
        """Return how many requests to a webhook have failed."""
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            page = (await http.get(f"{self.url}/metrics")).text
        name = 'alertmanager_notification_requests_failed_total{integration="webhook"}'
        return float(next(line for line in page.splitlines() if line.startswith(name)).rpartition(" ")[2])

    async def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        await asyncio.to_thread(self.process.wait, 10)


@dataclass(frozen=True, slots=True)
class Monitoring:
    """What watches: set a gauge to 1, and its alert fires at both peers; to 0, and it is over."""

    gauges: MutableMapping[str, int]
    peers: Sequence[Sender]

    async def fingerprint(self, peer: Sender, alert: str) -> str:
        """Wait until PEER has an alert of this service; return what it calls it."""

        async def look() -> str:
            found = await peer.ask("/api/v2/alerts") or []
            return next((one["fingerprint"] for one in found if one["labels"]["service"] == alert), "")

        try:
            return await until(look, f"{alert} at {peer.name}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{last_words(peer.log)}") from None


def exposition(gauges: Mapping[str, int]) -> bytes:
    """Return the gauges as a scrape finds them."""
    lines = [f'trouble{{service="{name}"}} {value}' for name, value in gauges.items()]
    return ("\n".join(["# TYPE trouble gauge", *lines]) + "\n").encode()


@asynccontextmanager
async def running(name: str, argv: Sequence[str], folder: Path, url: str) -> AsyncIterator[Sender]:
    """Run a program on a leash until the block ends."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220  it outlives the loop that starts it
            write_spec(Program(name, argv, cwd=folder), folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    sender = Sender(name, url, process, log)
    try:
        yield sender
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def route(hook: Mapping[str, str]) -> dict[str, Any]:
    """Return an Alertmanager's configuration that tells HOOK, an entry of endpoints.json."""
    secret = {"authorization": {"credentials_file": hook["secret_file"]}}
    return {
        "route": {
            "receiver": "opsmesh",
            "group_by": ["alertname", "service"],
            "group_wait": "200ms",
            "group_interval": "1s",
            "repeat_interval": "1h",
        },
        "receivers": [{"name": "opsmesh", "webhook_configs": [{"url": hook["url"], "http_config": secret}]}],
    }


@asynccontextmanager
async def pair(folder: Path, hook: Mapping[str, str]) -> AsyncIterator[Sequence[Sender]]:
    """Run two Alertmanagers in one cluster that both tell HOOK."""
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(route(hook)))
    ports = [(free_port(), free_port()) for _ in range(2)]
    async with AsyncExitStack() as stack:
        peers = []
        for number, (port, gossip) in enumerate(ports):
            other = ports[1 - number][1]
            argv = [
                str(ALERTMANAGER),
                f"--config.file={folder / 'alertmanager.yml'}",
                f"--storage.path={folder / f'alertmanager-{number}'}",
                f"--web.listen-address=127.0.0.1:{port}",
                f"--cluster.listen-address=127.0.0.1:{gossip}",
                f"--cluster.advertise-address=127.0.0.1:{gossip}",
                f"--cluster.peer=127.0.0.1:{other}",
                f"--cluster.gossip-interval={LATE}",
                f"--cluster.pushpull-interval={LATE}",
                f"--cluster.probe-interval={LATE}",
                "--cluster.reconnect-interval=200ms",
                "--cluster.peer-timeout=1ms",
                "--cluster.settle-timeout=2s",
            ]
            name = f"alertmanager-{number}"
            peers.append(await stack.enter_async_context(running(name, argv, folder, f"http://127.0.0.1:{port}")))

        async def one_cluster() -> bool:
            found = [(await one.ask("/api/v2/status") or {}).get("cluster", {}) for one in peers]
            return all(one.get("status") == "ready" and len(one["peers"]) == len(peers) for one in found)

        try:
            await until(one_cluster, "a pair of Alertmanagers", BOOT_SECONDS)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *(last_words(one.log) for one in peers)])) from None
        yield peers


@asynccontextmanager
async def monitoring(
    folder: Path, hook: Mapping[str, str], rules: Sequence[Mapping[str, Any]]
) -> AsyncIterator[Monitoring]:
    """Run a Prometheus with RULES about the gauge `trouble`, and the pair it alerts, which tells HOOK."""
    gauges: dict[str, int] = {}

    def respond(_: Asked) -> tuple[int, bytes]:
        return 200, exposition(gauges)

    port = free_port()
    async with web(respond) as exporter, pair(folder, hook) as peers:
        (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "trouble", "rules": list(rules)}]}))
        targets = [f"127.0.0.1:{exporter.port}"]
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "trouble", "static_configs": [{"targets": targets}]}],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": [one.url.removeprefix("http://") for one in peers]}]}]
            },
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        argv = [
            str(PROMETHEUS),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        async with running("prometheus", argv, folder, f"http://127.0.0.1:{port}"):
            yield Monitoring(gauges, peers)
