"""Keys from files: read, or a word on which setting is wrong and what to do."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from services.mesh.errors import BootError
from services.mesh.keys import private_key, public_key

PRIVATE = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_pair(tmp_path: Path) -> None:
    """What the one signs, the other believes."""
    key, private, public = Ed25519PrivateKey.generate(), tmp_path / "private", tmp_path / "public"
    private.write_bytes(key.private_bytes(*PRIVATE))
    public.write_bytes(key.public_key().public_bytes(*PUBLIC))
    public_key("PUBLIC", public).verify(private_key("PRIVATE", private).sign(b"this"), b"this")


@pytest.mark.parametrize("read", [private_key, public_key])
@pytest.mark.parametrize("content", [None, b"", b"no key"])
def test_no_key(tmp_path: Path, read: object, content: bytes | None) -> None:
    """A file that is not there, or holds none: the setting, the file, and what to do."""
    assert callable(read)
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BootError, match=rf"SETTING={path} cannot be read: .* NEXT: opsmesh certs init"):
        read("SETTING", path)


def test_another_kind_of_key(tmp_path: Path) -> None:
    """Only Ed25519 will do."""
    key, path = generate_private_key(SECP256R1()), tmp_path / "key"
    path.write_bytes(key.private_bytes(*PRIVATE))
    with pytest.raises(BootError, match=r"is no Ed25519 key\. NEXT"):
        private_key("SETTING", path)
    path.write_bytes(key.public_key().public_bytes(*PUBLIC))
    with pytest.raises(BootError, match=r"is no Ed25519 key\. NEXT"):
        public_key("SETTING", path)
