"""Policy is read from the generated code."""

import pytest

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.policy.v1 import policy_pb2
from services.mesh import policy
from services.mesh.errors import Refusal
from services.mesh.tools import find_tool, tools

RESTART = "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload"


def test_a_tool_is_found_by_its_bare_name() -> None:
    """The bare RPC name works where it is unique."""
    assert find_tool("RestartWorkload") is find_tool(RESTART) is tools()[RESTART]
    assert find_tool(RESTART).request_class.DESCRIPTOR.name == "RestartWorkloadRequest"


@pytest.mark.parametrize("name", ["", "Nothing", "restartworkload", "opsmesh.audit.v1.AuditService/GetEvent"])
def test_what_is_no_tool_is_refused(name: str) -> None:
    """Only RPCs of the tools packages are tools."""
    with pytest.raises(Refusal, match="TOOL_UNKNOWN"):
        find_tool(name)


def test_every_tool_says_what_the_mesh_must_know() -> None:
    """Summary, when to use, timeout; named fields and RPCs exist."""
    for tool in tools().values():
        assert tool.spec.summary, tool.name
        fields = tool.method.input_type.fields_by_name
        for named in (tool.spec.target_field, tool.spec.channel_field, *(one.field for one in tool.spec.blast_radius)):
            assert not named or named in fields, tool.name
        for rpc in filter(None, (tool.spec.precondition_rpc, tool.spec.resolve_rpc)):
            assert tool.sibling(rpc).policy.access == policy_pb2.ACCESS_READ, tool.name
        if tool.spec.precondition_rpc:
            answered = tool.sibling(tool.spec.precondition_rpc).method.output_type
            names = set(answered.fields_by_name)
            for field in answered.fields:
                names |= set(field.message_type.fields_by_name) if field.message_type else set()
            assert {one.split(".")[-1] for one in tool.spec.precondition_fields} <= names, tool.name


def test_the_digest_names_method_and_bytes() -> None:
    """Another method or another field gives another digest; map order does not."""
    first = pb.AuditEvent(details={"a": "1", "b": "2"})
    second = pb.AuditEvent(details={"b": "2", "a": "1"})
    assert policy.digest("m", first) == policy.digest("m", second)
    assert policy.digest("m", first) != policy.digest("n", first)
    assert policy.digest("m", first) != policy.digest("m", pb.AuditEvent(details={"a": "1"}))


def test_a_method_nobody_declared_has_no_policy() -> None:
    """There is no silent default."""
    with pytest.raises(Refusal, match="METHOD_WITHOUT_POLICY"):
        policy.method_policy("opsmesh.audit.v1.AuditService/Truncate")
