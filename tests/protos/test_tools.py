"""What a ToolSpec names exists: a typo in an option would otherwise be found by the first incident at night."""

import pytest

from opsmesh.policy.v1 import policy_pb2
from services.mesh.tools import Tool, tools

TOOLS = list(tools().values())


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.rpc)
def test_named_fields_exist(tool: Tool) -> None:
    """The target, the channel and the blast-radius fields are fields of the request."""
    named = [tool.spec.target_field, tool.spec.channel_field, *(one.field for one in tool.spec.blast_radius)]
    assert {name for name in named if name} <= set(tool.method.input_type.fields_by_name)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.rpc)
def test_named_reads_are_reads_of_the_same_target(tool: Tool) -> None:
    """Precondition and resolve are reads that take the target field, and the precondition fields are in the answer."""
    for rpc in {tool.spec.precondition_rpc, tool.spec.resolve_rpc} - {""}:
        read = tool.sibling(rpc)
        assert read.policy.access == policy_pb2.ACCESS_READ
        assert tool.spec.target_field in read.method.input_type.fields_by_name
    if tool.spec.precondition_rpc:
        answer = tool.sibling(tool.spec.precondition_rpc).method.output_type
        assert set(tool.spec.precondition_fields) <= set(answer.fields_by_name)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.rpc)
def test_what_changes_something_can_be_repeated_and_resolved(tool: Tool) -> None:
    """Every tool that is no read has a request_id; one that writes on a target says how a lost outcome is resolved."""
    if tool.policy.access == policy_pb2.ACCESS_READ:
        assert not tool.spec.resolve_rpc
        return
    assert "request_id" in tool.method.input_type.fields_by_name
    if tool.policy.access != policy_pb2.ACCESS_INFORM:
        assert tool.policy.audit == policy_pb2.AUDIT_MODE_INTENT
        assert tool.spec.resolve_rpc


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.rpc)
def test_the_tool_may_take_as_long_as_it_says(tool: Tool) -> None:
    """The RPC's longest duration covers the tool's own timeout."""
    assert 0 < tool.spec.timeout_duration.seconds <= tool.policy.max_duration.seconds
