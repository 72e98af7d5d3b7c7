"""The call being served: who calls what, until when, in which trace. Kept in a context variable for the whole task."""

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from opsmesh.policy.v1 import policy_pb2

NO_POLICY: Final = policy_pb2.MethodPolicy()


class Trace(NamedTuple):
    """A place in a W3C trace: hexadecimal ids, and whether an exporter records it."""

    trace_id: str
    span_id: str
    sampled: bool = False

    def child(self) -> "Trace":
        """Return a new span of the same trace."""
        return Trace(self.trace_id, _hexadecimal(8), self.sampled)

    @property
    def header(self) -> str:
        """Return the `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def new_trace() -> Trace:
    """Return the root of a new trace."""
    return Trace(_hexadecimal(16), _hexadecimal(8))


def _hexadecimal(count: int) -> str:
    """Return a random number of `count` bytes; nothing secret, so the quick generator will do."""
    return f"{random.getrandbits(8 * count):0{2 * count}x}"


@dataclass(slots=True)
class Call:
    """One call as its servicer may know it; the chain fills it in, everybody else only reads.

    `identity` is the path of the peer's SPIFFE id (`service/router`, `human/operator`); `method` is
    `package.Service/Rpc`; `deadline` is on the monotonic clock, in seconds; `on_behalf_of` is what a service says
    about the person who asked it: recorded, never a ground for a decision.
    """

    identity: str
    method: str
    policy: policy_pb2.MethodPolicy
    deadline: float
    trace: Trace
    request_id: str = ""
    on_behalf_of: str = ""
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)

    @property
    def trace_id(self) -> str:
        """Return the W3C trace id, hexadecimal."""
        return self.trace.trace_id

    @property
    def remaining(self) -> float:
        """Return the seconds until the deadline, never below zero."""
        return max(0.0, self.deadline - time.monotonic())


_current: ContextVar[Call | None] = ContextVar("opsmesh_call", default=None)


def current() -> Call:
    """Return the call being served; a LookupError outside of one."""
    call = _current.get()
    if call is None:
        raise LookupError("no call is being served here: wrap the work in services.mesh.call.working(...)")
    return call


def maybe_current() -> Call | None:
    """Return the call being served, or None outside of one."""
    return _current.get()


def enter(call: Call) -> None:
    """Make `call` the current one for the rest of this task (gRPC runs each call in a task of its own)."""
    _current.set(call)


@contextmanager
def working(
    identity: str,
    method: str,
    seconds: float,
    *,
    trace: Trace | None = None,
    request_id: str = "",
    on_behalf_of: str = "",
    policy: policy_pb2.MethodPolicy = NO_POLICY,
) -> Iterator[Call]:
    """Give a worker's piece of work what a served call has: an identity, a deadline in `seconds` and a trace.

    Calls to peers made inside share that deadline and trace, and audit events name that identity.
    """
    call = Call(
        identity=identity,
        method=method,
        policy=policy,
        deadline=time.monotonic() + seconds,
        trace=trace.child() if trace else new_trace(),
        request_id=request_id,
        on_behalf_of=on_behalf_of,
    )
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)
