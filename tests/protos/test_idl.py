"""What every RPC, field and error of the IDL carries."""

import json
import re
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from buf.validate import validate_pb2
from opsmesh.policy.v1 import policy_pb2
from services.mesh import policy, snapshot

METHODS = {policy.full_name(method): method for one in policy.generated_services() for method in one.methods}
MESSAGES = [one for one in snapshot.messages() if not one.full_name.startswith("opsmesh.policy.v1.")]
# DESIGN, section 5: these carry keys of their own.
KEYED = {
    "AuthorizeReads",
    "SubmitSignals",
    "DecideIncident",
    "AppendEvents",
    "AuthorizeAction",
    "PollLease",
    "RenewLock",
    "RenewClaim",
    "ReportStops",
}
CHANGES = {*policy.EFFECTS, policy_pb2.ACCESS_INFORM}
SIZED = {"max_len", "len", "max_bytes", "len_bytes", "uuid", "tuuid", "const", "in", "ip", "ipv4", "ipv6"}
RANGED = {"lt", "lte", "gt", "gte", "const", "in", "finite"}
NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_FLOAT,
    FieldDescriptor.CPPTYPE_DOUBLE,
}


def rules_of(field: FieldDescriptor) -> Any:
    """Return the protovalidate rules of a field."""
    return field.GetOptions().Extensions[validate_pb2.field]  # type: ignore[attr-defined]  # generated without stubs


def unbounded(field: FieldDescriptor) -> list[str]:
    """Return what is unbounded about a field."""
    rules = rules_of(field)
    if field.message_type and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        missing = [] if rules.map.HasField("max_pairs") else ["max_pairs"]
        return missing + loose(key, rules.map.keys, "key") + loose(value, rules.map.values, "value")
    if field.is_repeated:
        missing = [] if rules.repeated.HasField("max_items") else ["max_items"]
        return missing + loose(field, rules.repeated.items, "item")
    return loose(field, rules, "value")


def loose(field: FieldDescriptor, rules: Any, what: str) -> list[str]:
    """Return `what` when a single scalar has no bound."""
    given = (
        {one.name for one, _ in getattr(rules, rules.WhichOneof("type")).ListFields()}
        if rules.WhichOneof("type")
        else set()
    )
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return [] if given & SIZED else [what]
    if field.cpp_type in NUMBERS:
        return [] if given & RANGED else [what]
    return []


def test_every_method_carries_a_policy() -> None:
    """Each policy is there and within its own bounds."""
    policy.check_policies(METHODS.values())
    assert set(policy.table()) == set(METHODS)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.full_name)
def test_every_field_is_bounded(message: Descriptor) -> None:
    """Strings, bytes, numbers, lists and maps say how large they may be."""
    assert {field.name: found for field in message.fields if (found := unbounded(field))} == {}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_change_has_a_key(name: str) -> None:
    """What changes something carries a request_id that is a UUID, or has a key of its own."""
    method, access = METHODS[name], policy.method_policy(name).access
    if access not in CHANGES or method.name in KEYED:
        return
    field = method.input_type.fields_by_name["request_id"]
    assert rules_of(field).string.uuid


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_read_is_not_recorded_and_a_tool_that_acts_is(name: str) -> None:
    """Reads have audit NONE; an effect of a tool has INTENT; a notice has OUTBOX."""
    found = policy.method_policy(name)
    if found.access == policy_pb2.ACCESS_READ:
        assert found.audit == policy_pb2.AUDIT_MODE_NONE
    elif name.startswith("opsmesh.tools."):
        wanted = (
            policy_pb2.AUDIT_MODE_OUTBOX if found.access == policy_pb2.ACCESS_INFORM else policy_pb2.AUDIT_MODE_INTENT
        )
        assert found.audit == wanted


@pytest.mark.parametrize("name", sorted(METHODS))
def test_requests_and_responses_belong_to_their_rpc(name: str) -> None:
    """Each RPC has messages of its own, and every unary call ends within a minute."""
    method: MethodDescriptor = METHODS[name]
    assert (method.input_type.name, method.output_type.name) == (f"{method.name}Request", f"{method.name}Response")
    longest = policy.seconds(policy.method_policy(name).max_duration)
    assert 0 < longest <= (3600 if method.server_streaming else 60)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_lists_have_pages(name: str) -> None:
    """AIP-158: page_size and page_token in, next_page_token out."""
    method = METHODS[name]
    if not re.match(r"List|Search", method.name) or "page_token" not in method.input_type.fields_by_name:
        assert not method.name.startswith("List") or "next_page_token" not in method.output_type.fields_by_name
        return
    assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
    assert "next_page_token" in method.output_type.fields_by_name


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.full_name)
def test_names_say_what_they_hold(message: Descriptor) -> None:
    """Times are `*_time`, durations `*_duration`."""
    for field in message.fields:
        kind = field.message_type.full_name if field.message_type else ""
        assert kind != "google.protobuf.Timestamp" or field.name.endswith("_time"), field.full_name
        assert kind != "google.protobuf.Duration" or field.name.endswith("_duration"), field.full_name


def test_the_policy_snapshot_is_fresh() -> None:
    """A changed policy changes the committed snapshot, so that a reviewer sees it."""
    committed = json.loads(snapshot.FILE.read_text(encoding="utf-8"))
    assert snapshot.snapshot() == committed, "look at the change, then: python -m services.mesh.snapshot --write"
