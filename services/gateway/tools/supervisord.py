"""A small asynchronous client of supervisord's XML-RPC: info, stop and start of one program, each with a deadline."""

# The peer is a configured process manager, the answer is bounded, and expat itself refuses entity expansion.
import xmlrpc.client
from dataclasses import dataclass
from typing import Any, Final
from xml.parsers.expat import ExpatError

from services.gateway.backends import Manager
from services.gateway.tools.http import Http, NoAnswerError

ANSWER_BYTES_MAX: Final = 256 * 1024
OK: Final = 200
# Fault codes of supervisor.xmlrpc.Faults.
SHUTDOWN_STATE: Final = 6
BAD_NAME: Final = 10
ALREADY_STARTED: Final = 60
NOT_RUNNING: Final = 70
# Numbers of supervisor.states.ProcessStates.
STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL, UNKNOWN = 0, 10, 20, 30, 40, 100, 200, 1000


class FaultError(Exception):
    """supervisord refused a call; `code` is one of its fault codes."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(f"{text} ({code})")


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """What supervisord knows about a program; `start` in seconds since 1970, 0 when it never ran."""

    state: int
    pid: int
    start: int
    error: str


class Supervisord:
    """One program's manager. Every method may raise FaultError, NotDeliveredError and NoAnswerError."""

    def __init__(self, manager: Manager) -> None:
        self._http = Http(manager.socket, manager.login)
        self._url = manager.url

    async def info(self, program: str, seconds: float) -> ProcessInfo:
        """Return what is known about a program."""
        answer = await self._call(seconds, "supervisor.getProcessInfo", program)
        try:
            return ProcessInfo(int(answer["state"]), int(answer["pid"]), int(answer["start"]), str(answer["spawnerr"]))
        except (TypeError, KeyError, ValueError) as error:
            raise NoAnswerError("no process information in the answer") from error

    async def stop(self, program: str, seconds: float) -> None:
        """Stop a program and wait until it has ended."""
        await self._call(seconds, "supervisor.stopProcess", program, True)

    async def start(self, program: str, seconds: float) -> None:
        """Start a program and wait until it has stayed up for its `startsecs`."""
        await self._call(seconds, "supervisor.startProcess", program, True)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def _call(self, seconds: float, method: str, *parameters: str | bool) -> Any:
        """Make one call."""
        body = xmlrpc.client.dumps(parameters, method).encode()
        headers = {"Content-Type": "text/xml"}
        reply = await self._http.request(
            "POST", self._url, seconds=seconds, limit=ANSWER_BYTES_MAX, content=body, headers=headers
        )
        if reply.status != OK or reply.truncated:
            raise NoAnswerError(f"supervisord answered with HTTP status {reply.status}")
        try:
            values, _ = xmlrpc.client.loads(reply.body)
        except xmlrpc.client.Fault as fault:
            raise FaultError(int(fault.faultCode), str(fault.faultString)) from None
        except (xmlrpc.client.Error, ExpatError, ValueError) as error:
            raise NoAnswerError("the answer is no XML-RPC") from error
        return values[0]
