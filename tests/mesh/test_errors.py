"""Refusals: every reason has its words, and any of them fits into the trailers."""

import string

import pytest
from google.rpc import error_details_pb2

from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import STATUS_BYTES_MAX, FieldViolation, Refusal, describe, spec, to_status

REASONS = [value.number for value in error_reason_pb2.ErrorReason.DESCRIPTOR.values if value.number]


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_status_text_and_next_step(reason: int) -> None:
    """A value of the enum without its options would be answered as INTERNAL."""
    found = spec(reason)
    assert found.status
    assert found.text
    assert found.next
    assert reason == error_reason_pb2.ERROR_REASON_INTERNAL or found != spec(error_reason_pb2.ERROR_REASON_INTERNAL)


@pytest.mark.parametrize("reason", REASONS)
def test_text_says_what_and_next(reason: int) -> None:
    """The placeholders of a reason are filled from its metadata; a forgotten one does not break the error path."""
    names = {name for _, name, _, _ in string.Formatter().parse(spec(reason).text + spec(reason).next) if name}
    assert all(f"<{name}>" in describe(reason, {name: f"<{name}>" for name in names}) for name in names)
    assert ". NEXT: " in describe(reason, {})


def test_what_is_not_there_names_the_command_that_lists_its_kind() -> None:
    """A kind is listed by the command named after it, unless who refuses names another."""
    incident = describe(error_reason_pb2.ERROR_REASON_NOT_FOUND, {"resource": "incident", "id": "7"})
    assert incident == "there is no incident 7. NEXT: list what exists: opsmesh incidents list"
    event = describe(error_reason_pb2.ERROR_REASON_NOT_FOUND, {"resource": "event", "id": "7", "list": "audit list"})
    assert event.endswith("opsmesh audit list")


def test_metadata_is_text_not_a_format() -> None:
    """Braces in metadata are shown as they are."""
    words = describe(error_reason_pb2.ERROR_REASON_NOT_FOUND, {"resource": "{id.__class__}", "id": "{0}"})
    assert words.startswith("there is no {id.__class__} {0}")


def test_a_thousand_violations_fit_into_the_trailers() -> None:
    """GRPC refuses more than 8 KiB of trailers: the rest is counted instead."""
    violations = [FieldViolation(f"events[{n}].details", "x" * 500) for n in range(1000)]
    refusal = Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=violations)
    status = to_status(refusal, "opsmesh.audit")
    assert status.ByteSize() <= STATUS_BYTES_MAX + 400
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert bad.field_violations[-1].description.endswith(" more")


def test_long_metadata_is_cut() -> None:
    """A megabyte of detail does not break the answer."""
    refusal = Refusal(error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, target="t", detail="x" * 10**6)
    assert to_status(refusal, "opsmesh.gateway").ByteSize() < STATUS_BYTES_MAX
