"""Reads the backends file: the only place where a URL, a socket or a credential of the infrastructure enters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

from opsmesh.config.v1 import backends_pb2 as pb
from services.mesh.config import load_yaml
from services.mesh.errors import BootError
from services.mesh.settings import require_private

# Made here only (a test looks): no request can name where the gateway connects to.
ConfiguredUrl = NewType("ConfiguredUrl", str)


@dataclass(frozen=True, slots=True)
class Login:
    """User and password of a backend."""

    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Manager:
    """A supervisord's XML-RPC endpoint; `socket` is set when it listens on a Unix socket."""

    url: ConfiguredUrl
    socket: Path | None
    login: Login | None


@dataclass(frozen=True, slots=True)
class Workload:
    """A program, who manages it, and where it says whether it is healthy."""

    target_id: str
    program: str
    manager: Manager
    health_url: ConfiguredUrl


@dataclass(frozen=True, slots=True)
class Inbox:
    """A channel that is a local file."""

    path: Path


@dataclass(frozen=True, slots=True)
class Webhook:
    """A channel that is a signed POST to one URL."""

    url: ConfiguredUrl
    secret: str


@dataclass(frozen=True, slots=True)
class Backends:
    """Everything the gateway can reach, by target and by channel."""

    workloads: Mapping[str, Workload]
    channels: Mapping[str, Inbox | Webhook]
    runbooks: Path | None


def load(path: Path, state: Path) -> Backends:
    """Read the file; relative paths start at its folder, an inbox's at `state`. A BootError names what is wrong."""
    message = load_yaml(path, pb.Backends)
    folder = path.resolve().parent
    _refuse_twice(path, "workloads", (one.target_id for one in message.workloads))
    _refuse_twice(path, "channels", (one.channel for one in message.channels))
    return Backends(
        workloads={one.target_id: _workload(one, folder) for one in message.workloads},
        channels={one.channel: _channel(one, folder, state) for one in message.channels},
        runbooks=folder / message.runbook_folder if message.runbook_folder else None,
    )


def _workload(message: pb.WorkloadBackend, folder: Path) -> Workload:
    """Return one workload."""
    supervisord = message.supervisord
    login = None
    if supervisord.username:
        login = Login(supervisord.username, _secret(folder / supervisord.password_file, message.target_id))
    socket = None
    url = supervisord.server_url.rstrip("/") + "/RPC2"
    if supervisord.server_url.startswith("unix://"):
        socket = Path(supervisord.server_url.removeprefix("unix://"))
        url = "http://supervisord/RPC2"
    return Workload(
        target_id=message.target_id,
        program=supervisord.program,
        manager=Manager(ConfiguredUrl(url), socket, login),
        health_url=ConfiguredUrl(message.health_url),
    )


def _channel(message: pb.NoticeChannel, folder: Path, state: Path) -> Inbox | Webhook:
    """Return one notice channel."""
    if message.HasField("inbox"):
        return Inbox(state / message.inbox.path)
    secret = _secret(folder / message.webhook.secret_file, f"channel {message.channel}")
    return Webhook(ConfiguredUrl(message.webhook.url), secret)


def _secret(path: Path, owner: str) -> str:
    """Read a secret, or say whose is missing, or open to others."""
    require_private(path, f"the secret of {owner}")
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BootError(f"the secret of {owner} cannot be read: {error}. NEXT: correct the backends file") from None
    if not secret:
        raise BootError(f"the secret of {owner} in {path} is empty. NEXT: write it there")
    return secret


def _refuse_twice(path: Path, what: str, names: Iterable[str]) -> None:
    """Refuse a name that is given twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BootError(f"{path}: {what}: {name} is given twice. NEXT: keep one of them")
        seen.add(name)
