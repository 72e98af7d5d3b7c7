"""Client certificates on the bridge's TLS listener."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers

from services.bridge.app import build
from services.bridge.batches import Batches
from services.bridge.health import Readiness
from services.bridge.listener import Listener, tls_context
from services.bridge.main import _over_tls
from services.bridge.senders.doors import load_doors
from services.bridge.senders.mtls import Mtls, read_authorities
from services.bridge.senders.proof import Knock
from services.bridge.settings import BridgeSettings
from services.local.certs import Authority, Leaf, create_authority, issue
from services.local.files import free_port
from services.mesh.errors import BootError
from tests.bridge.house import PARSER_OF, MemoryIngest, write_config
from tests.ingest.house import alert, eventually, notification

SOURCES = """
sources:
  - {source: one, mtls: {names: [urn:sender:one]}}
  - {source: two, mtls: {}}
  - {source: alertmanager, bearer: {}}
"""
GOOD = notification(alert())
ONE, TWO, STRANGER, OURS = (create_authority(name) for name in ("one", "two", "two", "ours"))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a configuration folder with two CAs and the listener's own certificate."""
    for name in ("one", "two"):
        monkeypatch.setitem(PARSER_OF, name, "alertmanager")
    issue(OURS, ["urn:bridge"], ["localhost"]).write(tmp_path, "bridge")
    secrets = {"one": ONE.pem.decode(), "two": TWO.pem.decode(), "alertmanager": "new-secret\n"}
    return write_config(tmp_path, SOURCES, secrets)


@asynccontextmanager
async def over_tls(config: Path) -> AsyncIterator[str]:
    """Run a bridge over TLS; yields its URL."""
    address = f"127.0.0.1:{free_port()}"
    doors = load_doors(config, config)
    authorities = [one for door in doors.values() for one in door.authorities]
    context = tls_context(config / "bridge.pem", config / "bridge.key", authorities)
    app = build(doors, Batches(MemoryIngest(), 100, 1 << 20), lambda: Readiness(ready=True, degraded=()))
    listener, stop = Listener(app, address, context, "OPSMESH_HTTPS"), asyncio.Event()
    task = asyncio.create_task(listener.run(stop))
    try:
        await eventually(listener.started)
        yield f"https://{address}"
    finally:
        stop.set()
        await task


def client(folder: Path, leaf: Leaf | None) -> httpx.AsyncClient:
    """Return a client that knows the bridge's CA and shows a certificate, or none."""
    context = ssl.create_default_context(cadata=OURS.pem.decode())
    if leaf:
        leaf.write(folder, "client")
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
    return httpx.AsyncClient(verify=context, trust_env=False)


async def code(config: Path, url: str, source: str, leaf: Leaf | None, **headers: str) -> int:
    """Post as a source with a certificate; return the status, 0 when the handshake failed."""
    async with client(config, leaf) as http:
        try:
            return (await http.post(f"{url}/v1/webhooks/{source}", content=GOOD, headers=headers)).status_code
        except (httpx.TransportError, ssl.SSLError):
            return 0


async def test_each_source_has_its_own_authorities_and_names(config: Path) -> None:
    """The right CA and name opens, on the one connection that shows it; another source's, a stranger's, none do not."""
    right, unnamed = issue(ONE, ["urn:sender:one"]), issue(ONE, ["urn:sender:two"])
    async with over_tls(config) as url:
        assert await code(config, url, "one", right) == 202
        assert await code(config, url, "one", unnamed) == 401
        assert await code(config, url, "two", right) == 401
        assert await code(config, url, "two", issue(TWO, [])) == 202
        assert await code(config, url, "one", issue(TWO, ["urn:sender:one"])) == 401
        assert await code(config, url, "two", issue(STRANGER, [])) == 0
        assert await code(config, url, "one", None) == 401
        over = datetime.now(UTC) - timedelta(days=900)
        assert await code(config, url, "two", issue(TWO, [], now=over)) == 0


async def test_no_header_stands_for_a_certificate(config: Path) -> None:
    """What a proxy might write opens nothing; other schemes go on over TLS, with and without a certificate."""
    pem = ONE.pem.decode().replace("\n", "%0A")
    async with over_tls(config) as url:
        for name in ("Client-Cert", "X-Forwarded-Client-Cert", "X-Client-Cert", "client_certificate"):
            assert await code(config, url, "one", None, **{name: pem}) == 401
        bearer = {"Authorization": "Bearer new-secret"}
        assert await code(config, url, "alertmanager", None, **bearer) == 202
        assert await code(config, url, "alertmanager", issue(ONE, []), **bearer) == 202
        assert await code(config, url, "alertmanager", issue(ONE, [])) == 401


async def _opens(authority: Authority, leaf: bytes, now: datetime, *names: str) -> bool:
    certificate = ssl.PEM_cert_to_DER_cert(leaf.decode()) if leaf.startswith(b"-") else leaf
    knock = Knock(Headers({}), GOOD, now.timestamp(), certificate)
    return bool(await Mtls(frozenset(names)).verify(knock, read_authorities(authority.pem.decode())))


async def test_a_connection_may_outlast_its_certificate() -> None:
    """Time, issuer and name count at each request, whatever the handshake said."""
    now = datetime.now(UTC)
    leaf = issue(ONE, ["urn:a/common"], ["dns.example"]).certificate
    for name in ("urn:a/common", "common", "dns.example"):
        assert await _opens(ONE, leaf, now, name, "other")
    assert await _opens(ONE, leaf, now)
    assert not await _opens(ONE, leaf, now, "other")
    assert not await _opens(ONE, leaf, now + timedelta(days=5000))
    assert not await _opens(ONE, leaf, now - timedelta(days=1))
    # The same name of an issuer, and another key.
    assert not await _opens(STRANGER, issue(TWO, []).certificate, now)
    assert not await _opens(ONE, b"rubbish", now)
    assert not await _opens(ONE, b"", now)


def test_certificates_need_the_tls_listener(config: Path) -> None:
    """A source of client certificates without a listener that asks for them refuses the boot."""
    doors = load_doors(config, config)
    without = BridgeSettings.model_construct(https="")
    app = build(doors, Batches(MemoryIngest(), 100, 1 << 20), lambda: Readiness(ready=True, degraded=()))
    with pytest.raises(BootError, match="set OPSMESH_HTTPS"):
        _over_tls(app, doors, without)
    assert _over_tls(app, {"alertmanager": doors["alertmanager"]}, without) == []
    bare = BridgeSettings.model_construct(
        https="127.0.0.1:1", tls_cert=config / "bridge.pem", tls_key=config / "bridge.key"
    )
    assert len(_over_tls(app, {"alertmanager": doors["alertmanager"]}, bare)) == 1


@pytest.mark.parametrize(
    "text", ["", " \n", "no certificate", "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"]
)
def test_a_file_without_authorities_refuses_the_boot(config: Path, text: str) -> None:
    """An empty or broken CA file lets nobody in by not starting."""
    (config / "one").write_text(text)
    with pytest.raises(BootError, match="NEXT: "):
        load_doors(config, config)
