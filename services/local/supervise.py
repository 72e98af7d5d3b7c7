"""A supervisord of our own: starts, restarts, gives up, rotates logs, and stops what it runs in order."""

import hashlib
import http.client
import os
import shlex
import socket
import sys
import tempfile
import xmlrpc.client
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.local.files import LocalError, ensure_secret, private_directory, write_private
from services.local.process import Program, write_spec

USERNAME = "opsmesh"
LONGEST_SOCKET = 95  # the kernel takes 107 bytes, and supervisord first binds a name with its pid behind
CALL_SECONDS = 30
LAST_WORDS = 5


@dataclass(frozen=True, slots=True)
class Group:
    """Programs that start and stop together; among groups, those first in the list start first and stop last.

    Without a name, supervisord knows its programs as PROGRAM instead of GROUP:PROGRAM.
    """

    name: str
    programs: Sequence[Program]
    autostart: bool = True


@dataclass(frozen=True, slots=True)
class Instance:
    """One supervisord: files under RUN, logs under LOGS.

    A program that ends within START_SECONDS of its start is tried START_RETRIES times more, then given up (FATAL).
    Between these tries supervisord waits one second longer each time (1, 2, 3, 4 s); one that had stayed up is started
    again at once. Each log is rotated at LOG_BYTES, and LOG_BACKUPS older files are kept.
    """

    run: Path
    logs: Path
    name: str = "supervisord"
    start_seconds: int = 10
    start_retries: int = 4
    log_bytes: int = 10 << 20
    log_backups: int = 3

    @property
    def socket(self) -> Path:
        """Return its socket: beside its files, or in a private short folder when that path is too long for a socket."""
        path = self.run / f"{self.name}.sock"
        if len(os.fsencode(path)) <= LONGEST_SOCKET:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"opsmesh-{os.getuid()}-{digest}" / "s.sock"

    @property
    def password_file(self) -> Path:
        """Return the file with the password that its socket asks for, beside the file permissions."""
        return self.run / f"{self.name}.password"

    @property
    def pid_file(self) -> Path:
        """Return the file with its process number."""
        return self.run / f"{self.name}.pid"


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What became of one program; WHY (how it ended, and its last words) is empty while it runs."""

    name: str
    group: str
    state: str
    pid: int
    uptime_seconds: int
    why: str


def program(instance: Instance, groups: Sequence[Group]) -> Program:
    """Write the configuration of INSTANCE and return it as a program that stops everything when its parent dies.

    Raises LocalError when the fallback folder for its socket belongs to somebody else.
    """
    private_directory(instance.run)
    private_directory(instance.logs)
    _ensure_socket_folder(instance)
    instance.socket.unlink(missing_ok=True)  # of one that was killed: nobody else may run here
    sections = [_head(instance)]
    for priority, group in enumerate(groups, start=1):
        names = ",".join(item.name for item in group.programs)
        if names and group.name:
            sections.append(f"[group:{group.name}]\nprograms={names}\npriority={priority * 100}")
        sections += [_section(instance, item, autostart=group.autostart) for item in group.programs]
    config = instance.run / f"{instance.name}.conf"
    write_private(config, "\n\n".join([*sections, ""]).encode())
    argv = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(config)]
    return Program(instance.name, argv, stop_seconds=25)


def _ensure_socket_folder(instance: Instance) -> None:
    folder = instance.socket.parent
    private_directory(folder)
    status = folder.stat(follow_symlinks=False)
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise LocalError(f"{folder} is not ours alone; remove it, or use a --state folder with a shorter path")


def _head(instance: Instance) -> str:
    user = "user=root\n" if os.geteuid() == 0 else ""  # said explicitly, or it warns at every start
    return f"""[supervisord]
nodaemon=true
silent=true
{user}identifier=opsmesh
logfile={_escape(instance.logs / "supervisord.log")}
logfile_maxbytes={instance.log_bytes // 2}
logfile_backups={instance.log_backups}
pidfile={_escape(instance.pid_file)}
childlogdir={_escape(instance.logs)}

[unix_http_server]
file={_escape(instance.socket)}
chmod=0600
username={USERNAME}
password={_escape(ensure_secret(instance.password_file))}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface"""


def _section(instance: Instance, item: Program, *, autostart: bool) -> str:
    return f"""[program:{item.name}]
command={_escape(shlex.join(write_spec(item, instance.run)))}
autostart={str(autostart).lower()}
autorestart=true
startsecs={instance.start_seconds}
startretries={instance.start_retries}
stopsignal={item.stop}
stopwaitsecs={item.stop_seconds}
stopasgroup={str(item.stop_group).lower()}
killasgroup=true
redirect_stderr=true
stdout_logfile={_escape(instance.logs / f"{item.name}.log")}
stdout_logfile_maxbytes={instance.log_bytes}
stdout_logfile_backups={instance.log_backups}"""


def _escape(value: object) -> str:
    return str(value).replace("%", "%%")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CALL_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        # the user part of the URL becomes a header here, as for any other XML-RPC server
        _, self._extra_headers, _ = self.get_host_info(host)  # type: ignore[arg-type]  # typed for str and tuple
        return _Connection(self._path)


def call(instance: Instance, method: str, *arguments: object) -> Any:
    """Call METHOD of a running instance (blocking, at most 30 s).

    Raises LocalError when it does not run, or says no.
    """
    try:
        password = instance.password_file.read_text().strip()
        url = f"http://{USERNAME}:{password}@localhost"
        with xmlrpc.client.ServerProxy(url, _Transport(instance.socket), allow_none=True) as server:
            return getattr(server, method)(*arguments)
    except xmlrpc.client.Fault as fault:
        raise LocalError(
            f"supervisord refused {method} {' '.join(map(str, arguments))}: {fault.faultString}"
        ) from fault
    except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
        raise LocalError(f"nothing runs under {instance.run.parent}: {error}; start it with `opsmesh up`") from error


def status(instance: Instance) -> list[ProcessStatus]:
    """Return what became of each program; raises LocalError when the instance does not run."""
    return [_status(instance, info) for info in call(instance, "supervisor.getAllProcessInfo")]


def _status(instance: Instance, info: dict[str, Any]) -> ProcessStatus:
    running = info["statename"] in {"RUNNING", "STARTING"}
    return ProcessStatus(
        name=info["name"],
        group=info["group"],
        state=info["statename"],
        pid=info["pid"],
        uptime_seconds=info["now"] - info["start"] if running else 0,
        why="" if running else "\n".join([_ending(instance, info), *last_words(instance, info["name"])]),
    )


def _ending(instance: Instance, info: dict[str, Any]) -> str:
    """Return how a program ended last: the API forgets it when that was too early, the supervisor's log does not."""
    begin = f"exited: {info['name']} ("
    for line in reversed(_tail(instance.logs / "supervisord.log", 200)):
        if begin in line:
            return line.partition(begin)[2].partition(";")[0].rstrip(")")
    return str(info["spawnerr"] or info["description"])


def last_words(instance: Instance, name: str, lines: int = LAST_WORDS) -> list[str]:
    """Return the last LINES of a program's log."""
    return _tail(instance.logs / f"{name}.log", lines)


def _tail(path: Path, lines: int) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(max(0, path.stat().st_size - (64 << 10)))
        return [line.rstrip() for line in deque(file, maxlen=lines)]
