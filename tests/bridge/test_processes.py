"""The bridge and ingest as processes of their own, over mTLS, on stores that die and come back."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.local import certs
from services.local import postgres as pg
from services.local.files import free_port
from services.local.process import Program
from services.local.signing import proof_of
from tests import stores
from tests.bridge.bad import BAD
from tests.bridge.house import BASIC, BEARER, KEY, write_config
from tests.ingest.house import ROOT, alert, eventually, notification
from tests.ingest.test_faults import Machine

GOOD = notification(alert())
UNREACHABLE = "127.0.0.1:1"


class Mesh:
    """A bridge and an ingest; router, guardrails and audit do not exist."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.folder = machine.folder
        self.http_port, self.bridge_port, self.ingest_port = free_port(), free_port(), free_port()
        self.pki = certs.ensure(self.folder)
        self.config = write_config(self.folder)
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.http_port}", timeout=20)

    def program(self, name: str, **own: str) -> Program:
        """Return a service as a process."""
        peers = {"ingest": f"127.0.0.1:{self.ingest_port}"}
        values = {
            "LISTEN": f"127.0.0.1:{self.bridge_port if name == 'bridge' else self.ingest_port}",
            "METRICS": "",
            "TLS_CERT": str(self.pki / f"{name}.pem"),
            "TLS_KEY": str(self.pki / f"{name}.key"),
            "TLS_CA": str(self.pki / "ca.pem"),
            "IDENTITIES": str(ROOT / "deploy" / "identities.yaml"),
            "CONFIG": str(self.config),
            "PEERS": json.dumps(peers | dict.fromkeys(("router", "guardrails", "audit"), UNREACHABLE)),
            "STATE": str(self.folder),
            **own,
        }
        env = {f"OPSMESH_{key}": value for key, value in values.items()}
        return Program(name, [sys.executable, "-m", "services", name], env=env, cwd=ROOT)

    def programs(self) -> list[Program]:
        """Return both services."""
        database, valkey = stores.Database(self.machine.postgres), self.machine.valkey
        return [
            self.program("bridge", HTTP=f"127.0.0.1:{self.http_port}", SECRETS=str(self.config)),
            self.program(
                "ingest",
                POSTGRES_DSN=database.dsn("ingest", with_password=False),
                POSTGRES_PASSWORD_FILE=str(database.password_file("ingest")),
                REDIS_URL=valkey.url("ingest", with_password=False),
                REDIS_PASSWORD_FILE=str(valkey.password_file("ingest")),
            ),
        ]

    async def post(self, body: bytes = GOOD, source: str = "alertmanager") -> httpx.Response:
        """Post a webhook with good credentials."""
        headers = BASIC if source == "grafana" else BEARER
        return await self.http.post(f"/v1/webhooks/{source}", content=body, headers=headers)

    async def readiness(self) -> tuple[int, Any]:
        """Return what /readyz says; 0 while nothing listens."""
        try:
            answer = await self.http.get("/readyz")
        except httpx.TransportError:
            return 0, []
        return answer.status_code, answer.json()["degraded"]

    async def says(self, code: int, *degraded: str) -> None:
        """Wait until /readyz answers so."""

        async def probe() -> bool:
            return await self.readiness() == (code, list(degraded))

        await eventually(probe)


@pytest.fixture(scope="module")
async def mesh(store_folder: Path) -> AsyncIterator[Mesh]:
    """Give a bridge and an ingest that run on stores of their own."""
    machine = Machine(store_folder / f"processes-{free_port()}")
    pg.initialise(machine.postgres)
    await asyncio.gather(machine.start("valkey"), machine.start("postgres"))
    await pg.provision(machine.postgres)
    await pg.migrate(machine.postgres.dsn(pg.OWNER))
    made = Mesh(machine)
    async with AsyncExitStack() as stack:
        for program in made.programs():
            made.processes[program.name] = await stack.enter_async_context(stores.running(program, made.folder))
        await made.says(200)
        yield made
        await made.http.aclose()
    await machine.close()


async def rows(mesh: Mesh, query: str) -> list[Any]:
    """Read from ingest's schema."""
    connection = await asyncpg.connect(mesh.machine.postgres.dsn(pg.READER))
    try:
        return list(await connection.fetch(query))
    finally:
        await connection.close()


async def test_a_webhook_ends_as_an_incident(mesh: Mesh) -> None:
    """Posted three times: 202 each, one incident, two duplicates, the signal ids of the answers have their rows."""
    answers = [await mesh.post() for _ in range(3)]
    assert [one.status_code for one in answers] == [202] * 3
    ids = {one.json()["results"][0]["signal_id"] for one in answers}

    async def all_there() -> bool:
        found = await rows(mesh, "SELECT signal_id::text AS id, disposition FROM ingest.signals")
        return {row["id"] for row in found} >= ids

    await eventually(all_there)
    incidents = await rows(mesh, "SELECT state, signal_count, duplicate_count FROM ingest.incidents")
    assert [tuple(row) for row in incidents] == [("OPEN", 3, 2)]


async def test_a_replay_at_another_bridge_has_no_second_effect(mesh: Mesh) -> None:
    """A signed request twice, then to a replica that remembers nothing: one answer, one row, one signal."""
    hook = {"auth": "hmac-github", "header": "X-Hub-Signature-256"}
    body, port = notification(alert("Signed")), free_port()
    other = mesh.program(
        "bridge", HTTP=f"127.0.0.1:{port}", LISTEN=f"127.0.0.1:{free_port()}", SECRETS=str(mesh.config)
    )

    async def send(body: bytes, secret: str, at: str = "") -> httpx.Response:
        return await mesh.http.post(f"{at}/v1/webhooks/signed", content=body, headers=proof_of(hook, secret, body))

    answers = [await send(body, "new-secret"), await send(body, "old-secret")]
    async with stores.running(other, mesh.folder):

        async def taken() -> bool:
            try:
                answer = await send(body, "new-secret", f"http://127.0.0.1:{port}")
            except httpx.TransportError:
                return False
            if answer.status_code == 202:
                answers.append(answer)
            return answer.status_code == 202

        await eventually(taken)
    # What is accepted later gets its row later: when it is there, what came before was looked at.
    assert (await send(body + b"\n", "new-secret")).status_code == 202
    more = "SELECT signal_count FROM ingest.incidents WHERE title LIKE 'Signed%' AND signal_count > 1"
    await eventually(lambda: rows(mesh, more))
    assert [one.status_code for one in answers] == [202] * 3
    assert len({one.content for one in answers}) == 1
    assert [row["signal_count"] for row in await rows(mesh, more)] == [2]
    kept = await rows(mesh, "SELECT authenticity, verified FROM ingest.deliveries WHERE source = 'signed'")
    assert [tuple(row) for row in kept] == [("HMAC", True)] * 2


async def test_what_a_client_of_the_events_api_resolves_joins_its_alert(mesh: Mesh) -> None:
    """An alert without a key, and its end with the key of the answer: one incident. No store or log has the secret."""
    payload = {"summary": "Disk full, told by routing key", "source": "web-9", "severity": "critical"}
    event = {"routing_key": KEY, "event_action": "trigger", "payload": payload}
    answer = await mesh.http.post("/v2/enqueue", json=event)
    assert (answer.status_code, answer.json()["status"]) == (202, "success")
    key = answer.json()["dedup_key"]
    over = {"routing_key": KEY, "event_action": "resolve", "dedup_key": key}
    answer = await mesh.http.post("/v1/webhooks/pagerduty-events", json=over)
    assert (answer.status_code, answer.json()["dedup_key"]) == (202, key)
    told = [await mesh.http.post(f"/v1/webhooks/{source}/{KEY}", content=GOOD) for source in ("tokened", "signed")]
    assert [one.status_code for one in told] == [202, 404]
    joined = "SELECT incident_id FROM ingest.incidents WHERE title LIKE '%told by routing key%' AND signal_count = 2"
    assert len(await eventually(lambda: rows(mesh, joined))) == 1
    kept = await rows(mesh, "SELECT authenticity, body FROM ingest.deliveries WHERE source = 'pagerduty-events'")
    assert {row["authenticity"] for row in kept} == {"ROUTING_KEY"}
    assert not [row for row in kept if KEY.encode() in row["body"]]
    for name in ("bridge", "ingest"):
        log = (mesh.folder / f"{name}.log").read_text()
        assert log
        assert KEY not in log


@pytest.mark.parametrize("name", sorted(BAD))
async def test_bad_input(mesh: Mesh, name: str) -> None:
    """The same as with an ingest in memory: the documented status and field paths, and it goes on."""
    bad = BAD[name]
    answer = await mesh.post(bad.body, bad.source)
    assert answer.status_code == bad.status, answer.text
    if bad.status == 422:
        assert [one["field"] for one in answer.json()["errors"]] == bad.fields


async def test_everything_bad_that_was_authenticated_is_kept(mesh: Mesh) -> None:
    """Each 422 has a dead letter with its bytes; nothing is left pending, nothing was lost."""
    kept = {bad.body for bad in BAD.values() if bad.status == 422}
    for bad in BAD.values():
        if bad.status == 422:
            await mesh.post(bad.body, bad.source)

    async def all_there() -> bool:
        return {row["body"] for row in await rows(mesh, "SELECT body FROM ingest.dead_letters")} >= kept

    await eventually(all_there)


async def test_without_postgresql_202_goes_on_degraded(mesh: Mesh) -> None:
    """PostgreSQL killed: 202, /readyz says what is degraded; back again: the rows appear by themselves."""
    await mesh.machine.stop("postgres", signal.SIGQUIT)
    try:
        await mesh.says(200, "postgres")
        assert (await mesh.post(notification(alert("Dark")))).status_code == 202
    finally:
        await mesh.machine.start("postgres")
    await eventually(lambda: rows(mesh, "SELECT 1 FROM ingest.incidents WHERE title LIKE 'Dark%'"))
    await mesh.says(200)


async def test_without_valkey_503_and_recovery(mesh: Mesh) -> None:
    """Valkey killed: 503 with Retry-After and /readyz 503; back again: 202 and rows by themselves."""
    await mesh.machine.stop("valkey", signal.SIGKILL)
    try:
        answer = await mesh.post()
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        await mesh.says(503, "valkey")
    finally:
        await mesh.machine.start("valkey")
    await mesh.says(200)
    assert (await mesh.post(notification(alert("Again")))).status_code == 202
    await eventually(lambda: rows(mesh, "SELECT 1 FROM ingest.incidents WHERE title LIKE 'Again%'"))


async def test_without_ingest_503_and_recovery(mesh: Mesh) -> None:
    """Ingest killed and started again: 503 meanwhile, naming it, then 202."""
    ingest = next(one for one in mesh.programs() if one.name == "ingest")
    mesh.processes["ingest"].kill()
    await mesh.says(503, "ingest")
    assert (await mesh.post()).status_code == 503
    async with stores.running(ingest, mesh.folder):
        await mesh.says(200)
        assert (await mesh.post()).status_code == 202


@pytest.mark.parametrize(
    ("name", "missing", "words"),
    [
        ("ingest", "OPSMESH_REDIS_URL", "OPSMESH_REDIS_URL is not set. NEXT: "),
        ("bridge", "OPSMESH_SECRETS", "OPSMESH_SECRETS is not set. NEXT: "),
        ("bridge", "OPSMESH_HTTP", "OPSMESH_HTTP is not set. NEXT: "),
    ],
)
async def test_a_missing_setting_is_a_boot_error(mesh: Mesh, name: str, missing: str, words: str) -> None:
    """The process ends with the variable's name and the mend."""
    program = next(one for one in mesh.programs() if one.name == name)
    environment = {"PATH": "/usr/bin:/bin"} | {key: value for key, value in program.env.items() if key != missing}
    process = await asyncio.create_subprocess_exec(
        *program.argv, env=environment, cwd=program.cwd, stderr=asyncio.subprocess.PIPE
    )
    _, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 78
    assert words in error.decode()
