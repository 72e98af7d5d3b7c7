"""`opsmesh up` on one machine: one at a time, whole or not at all, and nothing left behind."""

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis

from services.cli.session import Session
from services.local import certs, up
from services.local.files import LocalError, ensure_secret, free_port_base
from services.local.layout import SERVICES, Mesh, plan
from services.local.programs import Stores, environment

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a short state folder that PostgreSQL's user can be let through to."""
    path = Path(tempfile.mkdtemp(prefix="opsmesh-up-"))
    (path / "config").mkdir()
    (path / "config" / "sources.yaml").write_text(
        "sources:\n- {source: alertmanager, bearer: {}}\n- {source: grafana, basic: {}}\n"
        "- {source: generic, header: {header: X-Token, secret_file: shared}}\n- {source: open, none: {}}\n"
    )
    yield path
    shutil.rmtree(path)


def _secret(endpoints: dict[str, Any], source: str) -> str:
    """Read what a sender of SOURCE proves itself with."""
    path = Path(endpoints["webhooks"][source]["secret_file"])
    assert path.stat().st_mode & 0o777 == 0o600
    return path.read_text()


@asynccontextmanager
async def stores_up(folder: Path, base: int) -> AsyncIterator[dict[str, Any]]:
    """Run `up` with the stores alone until the block ends; yields endpoints.json."""
    ready = asyncio.Event()

    def say(line: str) -> None:
        if line.startswith("ready"):
            ready.set()

    running = asyncio.create_task(up.run_up(folder / "state", folder / "config", port_base=base, services=(), say=say))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=120)
    try:
        if running.done():
            running.result()
        yield json.loads((folder / "state" / "endpoints.json").read_text())
    finally:
        waiting.cancel()
        if not running.done():
            os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(running, 60) == 0


def _left(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


async def test_up_comes_stops_and_resumes(folder: Path) -> None:
    """Stores answer as endpoints.json says, the file is private and goes at the stop, and state survives."""
    base = free_port_base()
    async with stores_up(folder, base) as endpoints:
        assert (folder / "state" / "endpoints.json").stat().st_mode & 0o777 == 0o600
        private = [*(folder / "state" / "pki").glob("*.key"), *(folder / "state" / "run").glob("*.password")]
        private += [file for file in (folder / "state" / "secrets").rglob("*") if file.is_file()]
        assert len(private) > len(SERVICES)
        assert {file.stat().st_mode & 0o777 for file in private} == {0o600}
        connection = await asyncpg.connect(endpoints["postgres"])
        assert await connection.fetchval("SELECT current_user") == "opsmesh_reader"
        await connection.close()
        observer = Redis.from_url(endpoints["redis"])
        assert await observer.ping()
        await observer.aclose()
        assert {child.name: child.state in {"STARTING", "RUNNING"} for child in up.read_status(folder / "state")} == {
            "postgres": True,
            "valkey": True,
            "temporal": True,
        }
        cluster = Stores.of(Mesh(folder / "state", port_base=base)).postgres
        owner = await asyncpg.connect(cluster.dsn("opsmesh_owner"))
        await owner.execute("CREATE TABLE public.kept (a int)")
        await owner.close()
        secret = _secret(endpoints, "alertmanager")
        assert Session(folder / "state", "operator", as_json=False).config(None) == folder / "config"
    assert not (folder / "state" / "endpoints.json").exists()
    assert not _left(folder)
    async with stores_up(folder, base) as again:
        assert _secret(again, "alertmanager") == secret
        owner = await asyncpg.connect(cluster.dsn("opsmesh_owner"))
        assert await owner.fetchval("SELECT to_regclass('public.kept')") is not None
        await owner.close()


async def test_webhooks_say_how_to_prove_oneself(folder: Path) -> None:
    """Each source has its URL, its kind of proof and a secret file; a basic one holds user:password."""
    async with stores_up(folder, free_port_base()) as endpoints:
        webhooks = endpoints["webhooks"]
        kinds = {name: (hook["auth"], hook["header"]) for name, hook in webhooks.items()}
        assert kinds == {
            "alertmanager": ("bearer", "Authorization"),
            "grafana": ("basic", "Authorization"),
            "generic": ("header", "X-Token"),
            "open": ("none", ""),
        }
        assert webhooks["generic"]["url"] == f"{endpoints['bridge']}/v1/webhooks/generic"
        assert webhooks["generic"]["secret_file"].endswith("/shared")
        user, _, password = _secret(endpoints, "grafana").partition(":")
        assert (user, len(password)) == ("grafana", 43)


async def test_tunables_reach_who_lays_out_the_services(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that writes the services' environments is handed what the operator set, and nothing else of ours."""
    monkeypatch.setenv("OPSMESH_RATE_LIMIT_PER_MINUTE", "60")
    monkeypatch.setenv("OPSMESH_GRANT_KEY_FILE", "/elsewhere")
    async with stores_up(folder, free_port_base()):
        handed = json.loads((folder / "state" / "run" / "bringup.json").read_text())["env"]
    assert {name: value for name, value in handed.items() if name.startswith("OPSMESH_")} == {
        "OPSMESH_RATE_LIMIT_PER_MINUTE": "60"
    }


async def test_two_on_one_state_refuse(folder: Path) -> None:
    """The second `up` on a folder says who holds it, and the first goes on."""
    async with stores_up(folder, free_port_base()) as endpoints:
        with pytest.raises(LocalError, match=f"already runs.*{os.getpid()}"), up._only_one(Mesh(folder / "state")):
            pass
        connection = await asyncpg.connect(endpoints["postgres"])
        await connection.close()


async def test_a_taken_port_is_named_with_the_mend(folder: Path) -> None:
    """A port in use stops the start before anything runs, naming the port, its purpose and the mend."""
    base = free_port_base()
    named = pytest.raises(LocalError, match=rf"{base + 21} \(valkey\).*--port-base")
    with socket.create_server(("127.0.0.1", base + 21)), named:
        await up.run_up(folder / "state", folder / "config", port_base=base, services=())
    assert not _left(folder)


async def test_what_can_never_work_is_named_before_anything_runs(folder: Path) -> None:
    """An address of another machine, a models file that is not there: each is named with its option."""
    with pytest.raises(LocalError, match=r"192\.0\.2\.1.*--listen"):
        await up.run_up(folder / "state", folder / "config", listen="192.0.2.1", services=())
    with pytest.raises(LocalError, match=r"nowhere\.yaml.*--models"):
        await up.run_up(folder / "state", folder / "config", folder / "nowhere.yaml", services=())
    assert not _left(folder)


def test_a_state_that_is_a_file_is_told_in_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A state folder that cannot be made ends `up` with the path and the option, without a traceback."""
    (folder / "file").write_text("")
    assert up.main(json.dumps(Mesh(folder / "file").describe())) == 1
    assert capsys.readouterr().err.startswith("opsmesh up: [Errno 20] Not a directory: ")


async def test_a_stale_endpoints_file_goes_first(folder: Path) -> None:
    """A start that fails leaves no endpoints.json of an earlier mesh."""
    (folder / "state").mkdir()
    (folder / "state" / "endpoints.json").write_text("{}")
    (folder / "config" / "sources.yaml").write_text("sources: [{source: x, bearr: {}}]")
    with pytest.raises(LocalError, match=r"sources\.yaml.*bearr"):
        await up.run_up(folder / "state", folder / "config", port_base=free_port_base(), services=())
    assert not (folder / "state" / "endpoints.json").exists()


async def test_a_service_that_cannot_start_ends_up_with_its_words(folder: Path) -> None:
    """A service that gives up is named with its last words, and everything else is stopped."""
    with pytest.raises(LocalError, match=r"(?s)gateway does not start: exit status [1-9].*gateway"):
        await up.run_up(folder / "state", folder / "config", port_base=free_port_base(), services=("gateway",))
    assert not _left(folder)


@pytest.mark.parametrize(
    "secret", ["pki/bridge.key", "pki/ca.key", "pki/operator.key", "secrets/postgres/opsmesh_owner"]
)
async def test_a_secret_that_others_may_read_stops_up(folder: Path, secret: str) -> None:
    """Whoever's it is, also a person's or the owner's: nothing is started, and `up` ends with the chmod to run."""
    state = folder / "state"
    certs.ensure(state)
    ensure_secret(state / secret)
    (state / secret).chmod(0o640)
    with pytest.raises(LocalError, match=rf"others may read: {state / secret}. NEXT: chmod 600 {state / secret}$"):
        await up.run_up(state, folder / "config", port_base=free_port_base(), services=("bridge",))
    assert not _left(folder)


def test_a_service_gets_its_own_secrets_only() -> None:
    """No service is told another's key, password or store."""
    mesh = plan(Path("/x"), Path("/c"), None, "127.0.0.1", 7400)
    settings = {name: environment(mesh, name) for name in SERVICES}
    assert {name for name in SERVICES if "OPSMESH_GRANT_KEY_FILE" in settings[name]} == {"guardrails"}
    assert {name for name in SERVICES if "OPSMESH_LOG_KEY_FILE" in settings[name]} == {"audit"}
    assert {name for name in SERVICES if "OPSMESH_IDENTITY_KEY_FILE" in settings[name]} == {"router"}
    assert settings["guardrails"]["OPSMESH_IDENTITY_PUBLIC_KEY_FILE"] == "/x/pki/identity.pub"
    assert {name for name in SERVICES if "OPSMESH_BACKENDS_FILE" in settings[name]} == {"gateway"}
    assert {name for name in SERVICES if "OPSMESH_REDIS_URL" in settings[name]} == {"ingest"}
    assert {name for name in SERVICES if "OPSMESH_SECRETS" in settings[name]} == {"bridge"}
    assert {name for name in SERVICES if "OPSMESH_POSTGRES_DSN" not in settings[name]} == {"bridge"}
    for name in SERVICES:
        assert settings[name]["OPSMESH_TLS_KEY"] == f"/x/pki/{name}.key"
        assert (
            "OPSMESH_POSTGRES_DSN" not in settings[name] or f"opsmesh_{name}@" in settings[name]["OPSMESH_POSTGRES_DSN"]
        )


def test_tunables_of_up_reach_the_services_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention and the like can be set for the whole mesh; what stands for a secret or an address cannot."""
    monkeypatch.setenv("OPSMESH_REQUEST_RETENTION_DAYS", "7")
    monkeypatch.setenv("OPSMESH_GRANT_KEY_FILE", "/elsewhere")
    monkeypatch.setenv("OPSMESH_LISTEN", "0.0.0.0:1")
    mesh = plan(Path("/x"), Path("/c"), None, "127.0.0.1", 7400)
    settings = environment(mesh, "router")
    assert settings["OPSMESH_REQUEST_RETENTION_DAYS"] == "7"
    assert settings["OPSMESH_LISTEN"] == "127.0.0.1:7402"
    assert "OPSMESH_GRANT_KEY_FILE" not in settings


def test_ports_follow_the_contract() -> None:
    """The port of each thing is its place after the base."""
    ports = {what: port for what, _, port in plan(Path("/x"), None, None, "127.0.0.1", 7400).ports()}
    assert ports["bridge HTTP"] == 7400
    assert [ports[f"{name} gRPC"] for name in SERVICES] == list(range(7401, 7409))
    assert [ports[f"{name} metrics"] for name in SERVICES] == list(range(7410, 7418))
    assert (ports["postgres"], ports["valkey"], ports["temporal"]) == (7420, 7421, 7422)
