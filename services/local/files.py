"""Files and ports of the local state directory: private, written atomically, generated once."""

import errno
import os
import secrets
import socket
from pathlib import Path
from typing import Final

BLOCK: Final = 32
_keepers: list[socket.socket] = []
_ports: list[int] = []


class LocalError(Exception):
    """The local mesh cannot do what was asked; the message says what, where and how to mend it."""


def private_directory(path: Path) -> Path:
    """Create PATH and its missing parents, all with mode 0700; an existing directory keeps its mode."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    return path


def write_private(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace PATH atomically and durably; a reader sees the old or the new content, never a part."""
    private_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(mode)  # the umask may have taken bits, an older file may have had more
    temporary.replace(path)


def ensure_secret(path: Path, prefix: str = "") -> str:
    """Return the secret in PATH, generating 256 bits (URL-safe, after PREFIX) the first time."""
    if path.exists() and (kept := path.read_text().strip()):
        return kept
    secret = prefix + secrets.token_urlsafe(32)
    write_private(path, secret.encode())
    return secret


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago, and that this function gives nobody else."""
    while True:
        if not _ports:
            base = free_port_base()
            _ports.extend(range(base, base + BLOCK - 1))
        if port_is_free("127.0.0.1", port := _ports.pop(0)):
            return port


def free_port_base() -> int:
    """Return the first of 31 neighbouring ports of 127.0.0.1 that were free a moment ago; LocalError if none are.

    They lie below the ports the kernel hands out, so that no outgoing connection takes one meanwhile. The port after
    them stays taken as long as this process lives: another one that looks for ports finds others.
    """
    for _ in range(100):
        base = 10_000 + secrets.randbelow(20_000 // BLOCK) * BLOCK
        keeper = socket.socket()
        try:
            keeper.bind(("127.0.0.1", base + BLOCK - 1))
        except OSError:
            keeper.close()
            continue
        _keepers.append(keeper)
        if all(port_is_free("127.0.0.1", port) for port in range(base, base + BLOCK - 1)):
            return base
    raise LocalError("no 31 neighbouring free ports between 10000 and 30000; say which with --port-base")


def port_is_free(address: str, port: int) -> bool:
    """Say whether nobody listens on ADDRESS:PORT now; raises LocalError when no server of ours ever could."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise LocalError(
                f"cannot listen on {address}:{port}: {error.strerror}; --listen takes an IP address of this machine"
            ) from error
    return True
