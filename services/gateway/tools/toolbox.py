"""Finds the methods that implement the tools, and makes the gRPC servicers for them from the descriptors.

A family is a class with `service` (the descriptor), `add` (the generated function that registers its servicer) and,
for each RPC `DoThing` of the service:
  `async def do_thing(self, request, precondition) -> response` does it within `current().remaining` seconds. The
      precondition was just read again and is empty for tools without one. It raises `EffectFailedError` when it was
      tried and failed, `Refusal` when nothing was changed (it may be tried again), and anything else when it cannot
      know: the effect is then resolved after its deadline.
  `async def resolve_do_thing(self, request, precondition) -> Ending`, unless it is a READ: tells how an effect ended
      whose outcome was lost; raises `Refusal` when it cannot tell yet.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from services.gateway.domain import Ending
from services.mesh.errors import BootError
from services.mesh.policy import READS
from services.mesh.tools import Tool, find_tool

Precondition = Mapping[str, str]
Act = Callable[[Any, Precondition], Awaitable[Message]]
Resolve = Callable[[Any, Precondition], Awaitable[Ending]]
Add = Callable[[Any, Any], None]
Serve = Callable[[Tool, Message], Awaitable[Message]]


class EffectFailedError(Exception):
    """The tool was tried and failed for good; `detail` is a sentence that may be stored and shown."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(detail)


class Family(Protocol):
    """A class that implements the tools of one service."""

    @property
    def service(self) -> ServiceDescriptor:
        """Return the service in the IDL."""

    @property
    def add(self) -> Add:
        """Return the generated `add_..._to_server`."""


class ConnectedFamily(Family, Protocol):
    """A family that holds connections."""

    async def close(self) -> None:
        """Close them."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """The methods behind one tool; reads have no `resolve`."""

    tool: Tool
    act: Act
    resolve: Resolve | None


def snake(rpc: str) -> str:
    """Return the method name of an RPC: `RestartWorkload` is `restart_workload`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", rpc).lower()


class Toolbox:
    """Every tool this gateway serves; a BootError names RPCs that nothing implements."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = tuple(families)
        self._known: dict[str, Implementation] = {}
        for family in self._families:
            for method in family.service.methods:
                tool = find_tool(f"{family.service.full_name}/{method.name}")
                self._known[tool.name] = _implementation(tool, family)

    def __getitem__(self, name: str) -> Implementation:
        """Return the implementation of a tool by its full name; a KeyError when this gateway does not serve it."""
        return self._known[name]

    def get(self, name: str) -> Implementation | None:
        """Return the implementation of a tool, or None when this gateway does not serve it (any more)."""
        return self._known.get(name)

    def tools(self) -> list[Tool]:
        """Return the tools by name."""
        return [self._known[name].tool for name in sorted(self._known)]

    def servicers(self, serve: Serve) -> list[tuple[Add, Any]]:
        """Return a servicer per family whose every method is `serve` with its tool."""
        return [(family.add, _servicer(family.service, serve)) for family in self._families]


def _implementation(tool: Tool, family: Family) -> Implementation:
    """Find the methods of one tool, or refuse to boot."""

    def find(name: str) -> Any:
        method = getattr(family, name, None)
        if method is None:
            raise BootError(f"{tool.name} is not implemented. NEXT: write {type(family).__name__}.{name}")
        return method

    name = snake(tool.rpc)
    resolve = None if tool.policy.access in READS else find(f"resolve_{name}")
    return Implementation(tool, find(name), resolve)


def _servicer(service: ServiceDescriptor, serve: Serve) -> Any:
    """Return an object with an async method per RPC of a service."""
    methods = {
        method.name: _handler(find_tool(f"{service.full_name}/{method.name}"), serve) for method in service.methods
    }
    return type(f"{service.name}Servicer", (), methods)()


def _handler(tool: Tool, serve: Serve) -> Callable[[Any, Message, Any], Awaitable[Message]]:
    """Return the method of one RPC."""

    async def handle(_self: Any, request: Message, _context: Any) -> Message:
        return await serve(tool, request)

    return handle
