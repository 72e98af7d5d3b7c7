"""The tools of the mesh, read from the generated code: every RPC of opsmesh.tools that carries a ToolSpec."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from opsmesh.policy.v1 import policy_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh import policy
from services.mesh.errors import Refusal

PACKAGE = "opsmesh.tools."


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: `name` is `opsmesh.tools.<family>.v1.<X>ToolService/<Rpc>`."""

    name: str
    method: MethodDescriptor
    request_class: type[Message]
    response_class: type[Message]
    policy: policy_pb2.MethodPolicy

    @property
    def spec(self) -> policy_pb2.ToolSpec:
        """Return what the mesh must know to offer, authorise, check and resolve this tool."""
        return self.policy.tool

    @property
    def rpc(self) -> str:
        """Return the bare RPC name."""
        return str(self.method.name)

    def sibling(self, rpc: str) -> "Tool":
        """Return another RPC of the same service, such as the read that resolves an outcome."""
        return find_tool(f"{self.method.containing_service.full_name}/{rpc}")


@cache
def tools() -> Mapping[str, Tool]:
    """Return every tool of the generated code by its full name."""
    found = {}
    for service in policy.generated_services():
        for method in service.methods if service.full_name.startswith(PACKAGE) else ():
            name = policy.full_name(method)
            found[name] = Tool(
                name=name,
                method=method,
                request_class=GetMessageClass(method.input_type),
                response_class=GetMessageClass(method.output_type),
                policy=policy.method_policy(name),
            )
    return MappingProxyType(found)


def find_tool(name: str) -> Tool:
    """Return a tool by its full name, or by the bare RPC name where that is unique; refuse otherwise."""
    known = tools()
    if tool := known.get(name.removeprefix("/")):
        return tool
    matching = [tool for tool in known.values() if tool.rpc == name]
    if len(matching) != 1:
        raise Refusal(error_reason_pb2.ERROR_REASON_TOOL_UNKNOWN, method=name)
    return matching[0]
