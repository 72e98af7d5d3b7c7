"""Ed25519 keys from PEM files: whoever starts with a wrong one hears which setting names it, and how to mend it."""

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from services.mesh.errors import BootError

NEXT: Final = "NEXT: opsmesh certs init"


def private_key(setting: str, path: Path) -> Ed25519PrivateKey:
    """Read the private key that `setting` names; raises BootError."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(setting, path, error) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _another(setting, path)
    return key


def public_key(setting: str, path: Path) -> Ed25519PublicKey:
    """Read the public key that `setting` names; raises BootError."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(setting, path, error) from None
    if not isinstance(key, Ed25519PublicKey):
        raise _another(setting, path)
    return key


def _unreadable(setting: str, path: Path, error: Exception) -> BootError:
    return BootError(f"{setting}={path} cannot be read: {error}. {NEXT}")


def _another(setting: str, path: Path) -> BootError:
    return BootError(f"{setting}={path} is no Ed25519 key. {NEXT}")
