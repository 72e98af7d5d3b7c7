"""A bridge with every scheme, and a state folder with which the command finds it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest.mapping import entry_of, result_of
from services.ingest.sources import PARSERS
from services.local import endpoints
from services.local.layout import Mesh
from tests.bridge.house import Bridge, MemoryIngest, running, unavailable
from tests.cli.mesh import Done, run

EVERY = """
sources:
  - {source: alertmanager, bearer: {}}
  - {source: grafana, basic: {}}
  - {source: opsgenie, header: {header: X-Own}}
  - {source: generic, none: {}}
  - {source: github, hmac_github: {}}
  - {source: pagerduty, hmac_pagerduty: {}}
  - {source: datadog, hmac_slack: {}}
  - {source: sentry, hmac_sentry: {}}
  - {source: newrelic, hmac_grafana: {}}
  - {source: zabbix, hmac_grafana: {header: X-Own, timestamp_header: X-Time}}
  - {source: change, hmac_standard: {}}
  - {source: splunk, url_token: {}}
  - {source: pagerduty-events, routing_key: {}}
  - {source: dynatrace, hmac_splunk: {}}
  - {source: sns, sns: {topics: ["arn:aws:sns:eu-west-1:123456789012:alarms"]}}
  - {source: elastic, bearer: {}, quota: {per_second: 1, burst: 1}}
  - {source: cloudevents, bearer: {}, quota: {per_second: 1, burst: 1}}
"""


class Anything(MemoryIngest):
    """Reads every body as `generic` does, whoever sent it: what a body is, is not the question here."""

    failing = 0

    async def SubmitSignals(  # noqa: N802  the IDL's name
        self,
        request: pb.SubmitSignalsRequest,
        *,
        timeout: float,  # noqa: ASYNC109  the stub's name
    ) -> pb.SubmitSignalsResponse:
        """Keep the deliveries and answer each, within `timeout` seconds; the first calls fail, as many as `failing`."""
        async with asyncio.timeout(timeout):
            await self.gate.wait()
        if self.error:
            raise self.error
        if self.failing:
            self.failing -= 1
            raise unavailable()
        entries = [entry_of(one, PARSERS["generic"]) for one in request.deliveries]
        self.entries += entries
        return pb.SubmitSignalsResponse(results=[result_of(one) for one in entries])


@dataclass(frozen=True, slots=True)
class Outside:
    """What the command has: a state folder; and what is behind it."""

    state: Path
    folder: Path
    ingest: Anything
    bridge: Bridge
    hooks: dict[str, Any]

    async def run(self, *words: str, stdin: bytes = b"") -> Done:
        """Run `opsmesh` on it."""
        return await run(*words, "--state", str(self.state), stdin=stdin)

    def write(self, name: str, *lines: object) -> str:
        """Write JSON lines; return the file's path."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
        return str(file)

    def sources(self) -> list[str]:
        """Return whose deliveries arrived."""
        return [one.delivery.source for one in self.ingest.entries]


@asynccontextmanager
async def listening(folder: Path, sources: str = EVERY) -> AsyncIterator[Outside]:
    """Run a bridge with secrets as `opsmesh up` generates them, and write what it tells of it."""
    config, state = folder / "config", folder / "state"
    config.mkdir(parents=True)
    (config / "sources.yaml").write_text(sources)
    mesh = Mesh(state, config)
    hooks = endpoints.ensure_webhooks(mesh)
    (mesh.webhook_secrets / "sources.yaml").write_text(sources)
    kept = Anything()
    async with running(mesh.webhook_secrets, kept, clock=time.monotonic) as bridge:
        moved = {name: one | {"url": one["url"].replace(mesh.bridge_url, bridge.url)} for name, one in hooks.items()}
        content = {"bridge": bridge.url, "services": {}, "tls": {"ca": str(folder / "none.pem")}, "webhooks": moved}
        (state / "endpoints.json").write_text(json.dumps(content))
        yield Outside(state, folder, kept, bridge, moved)
