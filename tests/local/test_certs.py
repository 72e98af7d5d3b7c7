"""The local CA gives every service and person one identity, once."""

import asyncio
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from services.local import certs
from services.local.files import LocalError


def _names(pem: Path) -> x509.SubjectAlternativeName:
    certificate = x509.load_pem_x509_certificate(pem.read_bytes())
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def _contents(pki: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pki.iterdir()}


def test_each_service_has_its_identity_and_names(tmp_path: Path) -> None:
    """A service's certificate says who it is and may serve as its name, localhost and 127.0.0.1."""
    pki = certs.ensure(tmp_path)
    for name in certs.SERVICES:
        names = _names(pki / f"{name}.pem")
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://opsmesh.local/service/{name}"]
        assert names.get_values_for_type(x509.DNSName) == [name, "localhost"]
        assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_people_have_identities_that_cannot_serve(tmp_path: Path) -> None:
    """A person's certificate holds the human id and no server name."""
    pki = certs.ensure(tmp_path)
    for name in certs.PEOPLE:
        names = _names(pki / f"{name}.pem")
        assert [general_name.value for general_name in names] == [f"spiffe://opsmesh.local/human/{name}"]


def test_keys_are_private(tmp_path: Path) -> None:
    """Nobody else of the machine can read a key."""
    pki = certs.ensure(tmp_path)
    assert pki.stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o777 for path in pki.glob("*.key")} == {0o600}


def test_ensure_again_changes_nothing(tmp_path: Path) -> None:
    """What is valid is kept byte for byte."""
    before = _contents(certs.ensure(tmp_path))
    assert _contents(certs.ensure(tmp_path)) == before


def test_leaves_near_their_end_are_renewed(tmp_path: Path) -> None:
    """After 70 of 90 days every leaf is new, under the same CA, and the signing keys stay."""
    before = _contents(certs.ensure(tmp_path))
    after = _contents(certs.ensure(tmp_path, now=datetime.now(UTC) + timedelta(days=70)))
    changed = {name for name in before if before[name] != after[name]}
    people_and_services = (*certs.SERVICES, *certs.PEOPLE)
    assert changed == {f"{name}.{kind}" for name in people_and_services for kind in ("pem", "key")}


def test_a_leaf_of_another_authority_is_replaced(tmp_path: Path) -> None:
    """A foreign certificate under a service's name does not survive."""
    pki = certs.ensure(tmp_path)
    certs.issue(certs.create_authority(), [certs.spiffe_id("router")], ["router"]).write(pki, "router")
    foreign = (pki / "router.pem").read_bytes()
    certs.ensure(tmp_path)
    assert (pki / "router.pem").read_bytes() != foreign


def test_a_broken_authority_is_never_replaced(tmp_path: Path) -> None:
    """Losing the CA key is told with the mend, for a new CA would silently end all trust."""
    pki = certs.ensure(tmp_path)
    (pki / "ca.key").write_bytes(b"")
    with pytest.raises(LocalError, match=r"ca\.key.*delete the pki folder"):
        certs.ensure(tmp_path)


def test_signing_keys_are_ed25519_pairs(tmp_path: Path) -> None:
    """Grants, the audit log and identity tokens are signed with Ed25519 keys whose public half lies beside them."""
    pki = certs.ensure(tmp_path)
    for name in certs.SIGNING_KEYS:
        key = serialization.load_pem_private_key((pki / f"{name}.key").read_bytes(), None)
        public = serialization.load_pem_public_key((pki / f"{name}.pub").read_bytes())
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        assert isinstance(public, ed25519.Ed25519PublicKey)
        public.verify(key.sign(b"words"), b"words")


def test_a_folder_from_before_there_was_a_signing_key_gets_it(tmp_path: Path) -> None:
    """What an older version made lacks the key that signs who asked in a chat: `up` adds it and keeps the rest."""
    pki = certs.ensure(tmp_path)
    for kind in ("key", "pub"):
        (pki / f"identity.{kind}").unlink()
    before = _contents(pki)
    after = _contents(certs.ensure(tmp_path))
    assert set(after) - set(before) == {"identity.key", "identity.pub"}
    assert {name: after[name] for name in before} == before


async def _handshake(pki: Path, client: certs.Leaf, folder: Path) -> str:
    """Let CLIENT connect to a server that is `ingest`; return what the server told it, or "refused"."""
    client.write(folder, "client")
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.pem"))
    server_side.verify_mode = ssl.CERT_REQUIRED
    server_side.load_cert_chain(pki / "ingest.pem", pki / "ingest.key")
    client_side = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    client_side.load_cert_chain(folder / "client.pem", folder / "client.key")

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server_side)
    async with server:
        port = server.sockets[0].getsockname()[1]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_side)
            line = await reader.readline()
        except (ssl.SSLError, ConnectionError):
            return "refused"
        writer.close()
    return line.decode() or "refused"  # TLS 1.3 tells the client late: it sees the end of the stream


async def test_a_good_certificate_is_accepted(tmp_path: Path) -> None:
    """OpenSSL accepts what the CA issues, in both directions."""
    pki = certs.ensure(tmp_path)
    authority = certs.load_authority(pki)
    assert await _handshake(pki, certs.issue(authority, [certs.spiffe_id("operator")]), tmp_path) == "hello\n"


@pytest.mark.parametrize("age", [timedelta(days=-2), timedelta(days=200)])
async def test_expired_and_future_certificates_are_refused(tmp_path: Path, age: timedelta) -> None:
    """A certificate outside its time does not get through the handshake."""
    pki = certs.ensure(tmp_path)
    bad = certs.issue(certs.load_authority(pki), [certs.spiffe_id("operator")], now=datetime.now(UTC) - age)
    assert await _handshake(pki, bad, tmp_path) == "refused"


async def test_another_authority_is_refused(tmp_path: Path) -> None:
    """The same name under another CA does not get through the handshake."""
    pki = certs.ensure(tmp_path)
    foreign = certs.issue(certs.create_authority(), [certs.spiffe_id("operator")])
    assert await _handshake(pki, foreign, tmp_path) == "refused"


@pytest.mark.parametrize("identities", [[], ["spiffe://opsmesh.local/service/a", "spiffe://opsmesh.local/service/b"]])
def test_odd_certificates_can_be_made(tmp_path: Path, identities: Sequence[str]) -> None:
    """A certificate without an identity or with two can be issued on purpose, to be refused elsewhere."""
    leaf = certs.issue(certs.create_authority(), identities, ["localhost"])
    leaf.write(tmp_path, "odd")
    assert _names(tmp_path / "odd.pem").get_values_for_type(x509.UniformResourceIdentifier) == list(identities)
