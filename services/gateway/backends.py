"""Reads the backends file: the only place where a URL, a socket or a credential of the infrastructure enters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
class Prometheus:
    """A server that speaks the HTTP API of Prometheus; `headers` carry a token or tenant."""

    instant_url: ConfiguredUrl
    range_url: ConfiguredUrl
    login: Login | None
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Elasticsearch:
    """The `_search` of some indices; `tiebreaker` orders lines of one moment."""

    url: ConfiguredUrl
    login: Login | None
    tiebreaker: str
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Files with a JSON object a line."""

    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class LogSource:
    """Where the lines of one target are; each of them carries `terms`, so that no search reads another target's."""

    terms: Mapping[str, str]
    time_field: str
    message_field: str
    fields: tuple[str, ...]
    store: Elasticsearch | JsonLines


@dataclass(frozen=True, slots=True)
class AwsAccount:
    """An AWS account in one region, and the address of its Auto Scaling API."""

    region: str
    url: ConfiguredUrl
    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Group:
    """A group of machines."""

    name: str
    account: AwsAccount


@dataclass(frozen=True, slots=True)
class Backends:
    """Everything the gateway can reach, by target and by channel; metrics under "" are every other target's."""

    workloads: Mapping[str, Workload]
    channels: Mapping[str, Inbox | Webhook]
    runbooks: Path | None
    metrics: Mapping[str, Prometheus]
    logs: Mapping[str, LogSource]
    groups: Mapping[str, Group]


def load(path: Path, state: Path) -> Backends:
    """Read the file; relative paths start at its folder, an inbox's at `state`. A BootError names what is wrong."""
    message = load_yaml(path, pb.Backends)
    folder = path.resolve().parent
    _refuse_twice(path, "workloads", (one.target_id for one in message.workloads))
    _refuse_twice(path, "channels", (one.channel for one in message.channels))
    _refuse_twice(path, "metrics", (name or "(the rest)" for one in message.metrics for name in one.targets or [""]))
    _refuse_twice(path, "logs", (target.target_id for one in message.logs for target in one.targets))
    _refuse_twice(path, "autoscaling", (one.target_id for one in message.autoscaling))
    return Backends(
        workloads={one.target_id: _workload(one, folder) for one in message.workloads},
        channels={one.channel: _channel(one, folder, state) for one in message.channels},
        runbooks=folder / message.runbook_folder if message.runbook_folder else None,
        metrics=_metrics(message.metrics, folder),
        logs=_logs(message.logs, folder),
        groups={one.target_id: Group(one.group, _account(one, folder)) for one in message.autoscaling},
    )


def _metrics(entries: Iterable[pb.MetricsBackend], folder: Path) -> dict[str, Prometheus]:
    """Return the servers by target."""
    found: dict[str, Prometheus] = {}
    for entry in entries:
        one = entry.prometheus
        headers = {"X-Scope-OrgID": one.tenant} if one.tenant else {}
        if one.bearer_token_file:
            headers["Authorization"] = f"Bearer {_secret(folder / one.bearer_token_file, one.url)}"
        url = one.url.rstrip("/")
        server = Prometheus(
            instant_url=ConfiguredUrl(f"{url}/api/v1/query"),
            range_url=ConfiguredUrl(f"{url}/api/v1/query_range"),
            login=_login(one.username, one.password_file, folder, one.url),
            headers=headers,
        )
        found |= dict.fromkeys(entry.targets or [""], server)
    return found


def _logs(entries: Iterable[pb.LogsBackend], folder: Path) -> dict[str, LogSource]:
    """Return the log stores by target."""
    found: dict[str, LogSource] = {}
    for entry in entries:
        store: Elasticsearch | JsonLines
        if entry.HasField("json_lines"):
            store = JsonLines(tuple(folder / path for path in entry.json_lines.paths))
        else:
            one = entry.elasticsearch
            headers = {}
            if one.api_key_file:
                headers["Authorization"] = f"ApiKey {_secret(folder / one.api_key_file, one.url)}"
            store = Elasticsearch(
                url=ConfiguredUrl(f"{one.url.rstrip('/')}/{one.index}/_search?ignore_unavailable=true"),
                login=_login(one.username, one.password_file, folder, one.url),
                tiebreaker=one.tiebreaker_field or "_doc",
                headers=headers,
            )
        for target in entry.targets:
            found[target.target_id] = LogSource(
                terms=dict(target.terms),
                time_field=entry.time_field or "@timestamp",
                message_field=entry.message_field or "message",
                fields=tuple(entry.fields),
                store=store,
            )
    return found


def _account(message: pb.AutoscalingBackend, folder: Path) -> AwsAccount:
    """Return the account of a group."""
    one, owner = message.aws, message.target_id
    # What AWS calls its partitions; elsewhere the file says the address.
    suffix = "amazonaws.com.cn" if one.region.startswith("cn-") else "amazonaws.com"
    return AwsAccount(
        region=one.region,
        url=ConfiguredUrl(one.endpoint_url.rstrip("/") or f"https://autoscaling.{one.region}.{suffix}"),
        access_key_id=one.access_key_id,
        secret_access_key=_secret(folder / one.secret_access_key_file, owner),
        session_token=_secret(folder / one.session_token_file, owner) if one.session_token_file else "",
    )


def _login(username: str, password_file: str, folder: Path, owner: str) -> Login | None:
    """Return user and password, where there is a user."""
    return Login(username, _secret(folder / password_file, owner)) if username else None


def _workload(message: pb.WorkloadBackend, folder: Path) -> Workload:
    """Return one workload."""
    supervisord = message.supervisord
    login = _login(supervisord.username, supervisord.password_file, folder, message.target_id)
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
