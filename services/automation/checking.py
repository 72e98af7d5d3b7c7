"""What is wrong with a playbook, found before it is published: every path and literal is held against the IDL."""

from collections.abc import Iterator, Mapping
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message

from opsmesh.config.v1 import playbooks_pb2
from opsmesh.policy.v1 import policy_pb2
from services.automation.domain import UNDO, Path, PathError, is_target, parse_fields, parse_path
from services.automation.fields import (
    Leaf,
    answer_leaf,
    field_policy,
    given_leaf,
    is_free_text,
    literal,
    misfit,
    names,
    walk,
)
from services.mesh import policy
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.policy import EFFECTS
from services.mesh.tools import Tool, find_tool

REQUEST_ID: Final = "request_id"
STEP_ID_MAX: Final = 63
Arguments = Mapping[str, playbooks_pb2.Argument]


def check(playbook: playbooks_pb2.Playbook) -> list[FieldViolation]:
    """Return every mistake of a playbook with its field path, such as `steps[1].arguments["target_id"].from`."""
    return list(_Check(playbook).all())


class _Check:
    """Goes through a playbook once; `_tools` are the steps so far whose answers may be named."""

    def __init__(self, playbook: playbooks_pb2.Playbook) -> None:
        self._playbook = playbook
        self._tools: dict[str, Tool] = {}
        self._conditions: dict[str, set[bytes]] = {}

    def all(self) -> Iterator[FieldViolation]:
        """Yield the mistakes in the order of the file."""
        seen: set[str] = set()
        for index, step in enumerate(self._playbook.steps):
            where = f"steps[{index}]"
            if step.step_id in seen:
                yield FieldViolation(f"{where}.step_id", f"{step.step_id!r} is the name of an earlier step")
            seen.add(step.step_id)
            yield from self._step(step, where)
        if self._playbook.HasField("failure_step"):
            step = self._playbook.failure_step
            if step.step_id in seen:
                yield FieldViolation("failure_step.step_id", f"{step.step_id!r} is the name of a step")
            # Which steps have an answer when one has failed is not known here.
            self._tools, self._conditions = {}, {}
            yield from self._step(step, "failure_step")
            if step.HasField("compensation"):
                yield FieldViolation("failure_step.compensation", "a failure step is not undone")
        yield from self._proof()

    def _step(self, step: playbooks_pb2.Step, where: str) -> Iterator[FieldViolation]:
        conditions = {one.SerializeToString(deterministic=True) for one in step.when}
        for index, one in enumerate(step.when):
            yield from self._condition(one, f"{where}.when[{index}]")
        tool = _tool(step.tool)
        if isinstance(tool, str):
            yield FieldViolation(f"{where}.tool", tool)
            return
        yield from self._arguments(tool, step.arguments, where, conditions)
        for index, one in enumerate(step.expect):
            yield from _expectation(tool, one, f"{where}.expect[{index}]")
        longest = policy.seconds(tool.policy.max_duration)
        if policy.seconds(step.timeout_duration) > longest:
            yield FieldViolation(f"{where}.timeout_duration", f"{tool.rpc} is cut off after {longest:g} s")
        self._tools[step.step_id] = tool
        self._conditions[step.step_id] = conditions
        if step.HasField("compensation"):
            if len(step.step_id) > STEP_ID_MAX - len(UNDO):
                yield FieldViolation(
                    f"{where}.step_id", f"too long for the name of its compensation, which adds {UNDO}"
                )
            undo = _tool(step.compensation.tool)
            if isinstance(undo, str):
                yield FieldViolation(f"{where}.compensation.tool", undo)
            else:
                yield from self._arguments(undo, step.compensation.arguments, f"{where}.compensation", conditions)

    def _arguments(
        self, tool: Tool, arguments: Arguments, where: str, conditions: set[bytes]
    ) -> Iterator[FieldViolation]:
        """Check each argument, then the bounds of the literals and what is missing."""
        request = tool.request_class()
        given = {REQUEST_ID}
        for name, argument in sorted(arguments.items()):
            here = f'{where}.arguments["{name}"]'
            given.add(name)
            if name == REQUEST_ID or name not in request.DESCRIPTOR.fields_by_name:
                known = ", ".join(one for one in names(request.DESCRIPTOR) if one != REQUEST_ID)
                yield FieldViolation(here, f"{tool.rpc} takes: {known}")
            elif argument.HasField("literal"):
                yield from _literal(tool, name, argument, request, here)
            else:
                yield from self._source(tool, name, getattr(argument, "from"), f"{here}.from", conditions)
                yield from self._also(tool, name, argument, f"{here}.also", conditions)
        for one in policy.violations(request):
            name = one.field.partition(".")[0].partition("[")[0]
            if name not in given:
                yield FieldViolation(f"{where}.arguments", f"{name} is missing: {one.description}")
            elif name in arguments and arguments[name].HasField("literal"):
                yield FieldViolation(f'{where}.arguments["{name}"].literal', one.description)

    def _also(
        self, tool: Tool, name: str, argument: playbooks_pb2.Argument, here: str, conditions: set[bytes]
    ) -> Iterator[FieldViolation]:
        """Check the second path of an argument: only free text can be followed by more."""
        if not argument.also:
            return
        if name == tool.spec.target_field or not is_free_text(tool.request_class.DESCRIPTOR.fields_by_name[name]):
            yield FieldViolation(here, f"{name} of {tool.rpc} is no free text: nothing can follow it")
            return
        yield from self._source(tool, name, argument.also, here, conditions)

    def _source(
        self, tool: Tool, name: str, source: str, here: str, conditions: set[bytes]
    ) -> Iterator[FieldViolation]:
        """Check one path: it exists, fits, and nothing from outside chooses what is acted on."""
        try:
            path = parse_path(source)
            leaf = self._leaf(path)
        except PathError as error:
            yield FieldViolation(here, str(error))
            return
        field = tool.request_class.DESCRIPTOR.fields_by_name[name]
        if wrong := misfit(leaf.field, field):
            yield FieldViolation(here, wrong)
        if name == tool.spec.target_field:
            if not is_target(path):
                yield FieldViolation(here, "a target comes from the incident only: incident.targets[0]")
        elif leaf.untrusted and not _takes_untrusted(tool, name):
            yield FieldViolation(here, f"text from outside may not choose {name} of {tool.rpc}")
        if path.step_id and not self._conditions[path.step_id] <= conditions:
            yield FieldViolation(here, f"step {path.step_id} may be skipped: give this step its conditions, too")

    def _leaf(self, path: Path) -> Leaf:
        """Return what a path leads to. Raises PathError."""
        if path.step_id is None:
            return given_leaf(path)
        tool = self._tools.get(path.step_id)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            raise PathError(f"{path.step_id!r} is no earlier step whose answer is known here; those are: {known}")
        return answer_leaf(tool.response_class.DESCRIPTOR, path.parts)

    def _condition(self, one: playbooks_pb2.Expectation, where: str) -> Iterator[FieldViolation]:
        try:
            path = parse_path(one.path)
            leaf = self._leaf(path)
        except PathError as error:
            yield FieldViolation(f"{where}.path", str(error))
            return
        if leaf.untrusted:
            yield FieldViolation(f"{where}.path", "text from outside may not choose what is done")
        yield from _comparison(leaf, one, where)

    def _proof(self) -> Iterator[FieldViolation]:
        """Check that the proof is a read, says something, and comes after everything that changes something."""
        wanted = self._playbook.proof_step_id
        if not wanted:
            return
        steps = {step.step_id: (index, step) for index, step in enumerate(self._playbook.steps)}
        if wanted not in steps:
            yield FieldViolation("proof_step_id", f"there is no step {wanted!r}")
            return
        index, step = steps[wanted]
        tool = self._tools_of(step)
        if tool is not None and tool.policy.access != policy_pb2.ACCESS_READ:
            yield FieldViolation("proof_step_id", f"{tool.rpc} is no read: it cannot prove anything")
        if not step.expect:
            yield FieldViolation("proof_step_id", f"step {wanted} expects nothing, so it proves nothing")
        for later in list(self._playbook.steps)[index + 1 :]:
            after = self._tools_of(later)
            if after is not None and after.policy.access in EFFECTS:
                yield FieldViolation("proof_step_id", f"step {later.step_id} changes something after the proof")

    @staticmethod
    def _tools_of(step: playbooks_pb2.Step) -> Tool | None:
        tool = _tool(step.tool)
        return None if isinstance(tool, str) else tool


def _tool(name: str) -> Tool | str:
    """Return a tool, or why there is none."""
    try:
        return find_tool(name)
    except Refusal:
        return f"there is no tool {name!r}, or the name is not unique; list them: opsmesh tools list"


def _takes_untrusted(tool: Tool, name: str) -> bool:
    """Say whether text from outside may go into a field: free text of any tool, any but the channel of a read."""
    field = tool.request_class.DESCRIPTOR.fields_by_name[name]
    if field_policy(field).untrusted:
        return True
    is_text = field.type == field.TYPE_STRING
    return is_text and tool.policy.access == policy_pb2.ACCESS_READ and name != tool.spec.channel_field


def _literal(
    tool: Tool, name: str, argument: playbooks_pb2.Argument, request: Message, here: str
) -> Iterator[FieldViolation]:
    """Put a literal into the request, whose bounds are checked as a whole."""
    if name == tool.spec.target_field:
        yield FieldViolation(here, "a target comes from the incident only: incident.targets[0]")
        return
    try:
        json_format.ParseDict({name: json_format.MessageToDict(argument.literal)}, request)
    except json_format.ParseError as error:
        yield FieldViolation(f"{here}.literal", str(error).splitlines()[0])


def _expectation(tool: Tool, one: playbooks_pb2.Expectation, where: str) -> Iterator[FieldViolation]:
    try:
        leaf = walk(tool.response_class.DESCRIPTOR, parse_fields(one.path))
    except PathError as error:
        yield FieldViolation(f"{where}.path", str(error))
        return
    yield from _comparison(leaf, one, where)


def _comparison(leaf: Leaf, one: playbooks_pb2.Expectation, where: str) -> Iterator[FieldViolation]:
    try:
        literal(leaf.field, one.equals)
    except PathError as error:
        yield FieldViolation(f"{where}.equals", str(error))
