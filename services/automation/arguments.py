"""The request of a step from its arguments, and whether conditions hold: values of the incident and of answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.config.v1 import playbooks_pb2
from opsmesh.ingest.v1 import ingest_service_pb2
from services.automation.domain import Part, Path, parse_fields, parse_path
from services.automation.fields import Field, Leaf, answer_leaf, convert, given_leaf, literal, value_at, walk
from services.mesh import policy
from services.mesh.errors import Refusal
from services.mesh.failures import sentence
from services.mesh.tools import Tool


class ArgumentError(Exception):
    """A request cannot be made: `reason` is an error reason, the text says which field and why."""

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        super().__init__(text)


class NotYetKnownError(ArgumentError):
    """A value comes from a step that has no answer."""


class Sources:
    """Where values come from: the incident's snapshot, the answers of steps so far by step id, the starter's note."""

    def __init__(self, incident: ingest_service_pb2.Incident, answers: Mapping[str, Message], note: str = "") -> None:
        self.incident = incident
        self.answers = answers
        self._start = automation_service_pb2.StartExecutionRequest(note=note)

    def find(self, path: Path) -> Any:
        """Return the value of a path, None when it is missing."""
        if path.of_start:
            return value_at(self._start, path.parts)
        if path.step_id is None:
            return self._of_incident(path.parts)
        answer = self.answers.get(path.step_id)
        if answer is None:
            raise NotYetKnownError("INVALID_ARGUMENT", f"step {path.step_id} has no answer")
        return value_at(answer, path.parts)

    def _of_incident(self, parts: Sequence[Part]) -> Any:
        """Return a value of the incident; a target that the inventory does not know is as good as none."""
        if parts[0].name == "targets":
            index = parts[0].index or 0
            if index >= len(self.incident.targets) or not self.incident.targets[index].in_inventory:
                return None
        return value_at(self.incident, parts)


def build(tool: Tool, arguments: Mapping[str, playbooks_pb2.Argument], sources: Sources, request_id: str) -> Message:
    """Return the request of a step, within its bounds. Raises ArgumentError."""
    request = tool.request_class()
    for name, argument in arguments.items():
        field = request.DESCRIPTOR.fields_by_name[name]
        if argument.HasField("literal"):
            json_format.ParseDict({name: json_format.MessageToDict(argument.literal)}, request)
            continue
        path = parse_path(getattr(argument, "from"))
        found = sources.find(path)
        if found is None or found == "":
            if name == tool.spec.target_field:
                raise ArgumentError("TARGET_UNKNOWN", f"{name}: the incident has no such target in the inventory")
            found = argument.default
            if found == "" and field.type != field.TYPE_STRING:
                raise ArgumentError("INVALID_ARGUMENT", f"{name}: {getattr(argument, 'from')} is missing")
        else:
            found = convert(found, _leaf(sources, path).field, field)
        if argument.also:
            found = _followed(found, argument.also, sources, field)
        try:
            setattr(request, name, found)
        except (TypeError, ValueError) as error:
            raise ArgumentError("INVALID_ARGUMENT", f"{name}: {error}") from None
    if "request_id" in request.DESCRIPTOR.fields_by_name:
        request.request_id = request_id  # type: ignore[attr-defined]  # the descriptor says it is there
    try:
        policy.validate(request)
    except Refusal as refusal:
        wrong = "; ".join(f"{one.field}: {one.description}" for one in refusal.violations)
        raise ArgumentError("INVALID_ARGUMENT", wrong) from None
    return request


def _followed(text: str, also: str, sources: Sources, field: Field) -> str:
    """Return text with what a second path leads to behind it, cut to the field's bound."""
    path = parse_path(also)
    more = sources.find(path)
    if more is None or more == "":
        return text
    more = convert(more, _leaf(sources, path).field, field)
    joined: str = convert(f"{text} | {more}" if text else more, field, field)
    return joined


def _leaf(sources: Sources, path: Path) -> Leaf:
    if path.step_id is None:
        return given_leaf(path)
    return answer_leaf(sources.answers[path.step_id].DESCRIPTOR, path.parts)


def target_of(tool: Tool, request: Message) -> str:
    """Return the target a request names, empty for tools without one."""
    return str(getattr(request, tool.spec.target_field)) if tool.spec.target_field else ""


def unmet(expectations: Sequence[playbooks_pb2.Expectation], answer: Message) -> str:
    """Return which expectation an answer does not meet, as a sentence; empty when it meets all."""
    for one in expectations:
        parts = parse_fields(one.path)
        wanted = literal(walk(answer.DESCRIPTOR, parts).field, one.equals)
        found = value_at(answer, parts)
        if found != wanted:
            return f"{one.path} is {sentence(str(found), 100)}, expected {sentence(str(wanted), 100)}"
    return ""


def holds(conditions: Sequence[playbooks_pb2.Expectation], sources: Sources) -> str:
    """Return which condition does not hold, as a sentence; empty when all do. Raises NotYetKnownError."""
    for one in conditions:
        path = parse_path(one.path)
        found = sources.find(path)
        leaf = _leaf(sources, path)
        wanted = literal(leaf.field, one.equals)
        if found != wanted:
            return f"{one.path} is {sentence(str(found), 100)}, not {sentence(str(wanted), 100)}"
    return ""
