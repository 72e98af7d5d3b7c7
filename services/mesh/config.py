"""YAML configuration as protobuf messages: every mistake is told with file, line and field path."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.mesh import policy
from services.mesh.errors import BootError

# The stubs know two names of one class.
Field = Any
M = TypeVar("M", bound=Message)
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
DEPTH_MAX: Final = 32
# Aliases make a short file long: more values than this are a mistake or an attack.
VALUES_MAX: Final = 1_000_000
LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
PLAIN_TAGS: Final = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file; `line` counts from 1, `field` is a path such as `rules[2].match.labels["team"]`."""

    file: Path
    line: int
    field: str
    description: str

    def __str__(self) -> str:
        """Return `file:line: field: description`."""
        return f"{self.file}:{self.line}: {self.field + ': ' if self.field else ''}{self.description}"


class ConfigError(BootError):
    """Configuration is refused; `problems` says where and why."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class _Reader:
    """Turns YAML nodes into plain values and remembers the line of every field path."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: dict[str, int] = {"": 1}
        self.problems: list[Problem] = []
        self._loader = yaml.SafeLoader("")
        self._count = 0

    def add(self, path: str, description: str) -> None:
        """Note a mistake at the line of the longest known beginning of `path`."""
        known = path
        while known not in self.lines:
            known = known[: max(known.rfind("."), known.rfind("["), 0)]
        self.problems.append(Problem(self.file, self.lines[known], path, description))

    def value(self, node: yaml.Node, path: str, depth: int = 0) -> Any:
        """Return the plain value of a node: dict, list, str, int, float, bool or None."""
        self.lines.setdefault(path, node.start_mark.line + 1)
        self._count += 1
        if depth > DEPTH_MAX or self._count > VALUES_MAX:
            raise ValueError(f"{path}: nested deeper than {DEPTH_MAX} levels or more than {VALUES_MAX} values")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, f"{path}[{index}]", depth + 1) for index, child in enumerate(node.value)]
        # Dates and the like stay the text they are: the message's own field type says what they mean.
        return self._loader.construct_object(node) if node.tag in PLAIN_TAGS else node.value

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[Hashable, Any]:
        """Return a mapping; a key given twice is a mistake, not the last one wins."""
        found: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            inner = f"{path}.{key}" if path else key
            if key in found:
                line = key_node.start_mark.line + 1
                self.problems.append(Problem(self.file, line, inner, "this key is given twice"))
                continue
            self.lines[inner] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, inner, depth + 1)
        return found


def load_yaml(path: Path, message_class: type[M]) -> M:
    """Read one YAML file as a message and check its bounds; a ConfigError lists every mistake."""
    reader = _Reader(path)
    message = _read(reader, message_class)
    if reader.problems:
        raise ConfigError(reader.problems)
    return message


def load_all(folder: Path, message_class: type[M]) -> dict[Path, M]:
    """Read every *.yaml of a folder, in order of name; one ConfigError lists the mistakes of all files."""
    found: dict[Path, M] = {}
    problems: list[Problem] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            found[path] = load_yaml(path, message_class)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


def _read(reader: _Reader, message_class: type[M]) -> M:
    """Parse, convert and validate; mistakes are added to the reader."""
    message = message_class()
    try:
        text = _text(reader.file)
        node = yaml.compose(text, Loader=LOADER)
        value = reader.value(node, "") if node else {}
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reader.add("", str(error))
        return message
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        reader.problems.append(Problem(reader.file, mark.line + 1 if mark else 1, "", f"not YAML: {error.problem}"))
        return message
    except yaml.YAMLError as error:
        reader.add("", f"not YAML: {error}")
        return message
    if not isinstance(value, dict):
        reader.add("", f"must be a mapping of the fields of {message_class.DESCRIPTOR.full_name}")
        return message
    _check_fields(reader, message_class, value, "")
    if not reader.problems:
        _convert(reader, message, value)
    return message


def _text(path: Path) -> str:
    """Return the text of a file of bounded size."""
    if path.stat().st_size > FILE_BYTES_MAX:
        raise ValueError(f"larger than {FILE_BYTES_MAX} bytes")
    return path.read_text(encoding="utf-8")


def _convert(reader: _Reader, message: Message, value: dict[str, Any]) -> None:
    """Fill the message and check its bounds."""
    try:
        json_format.ParseDict(value, message)
    except json_format.ParseError as error:
        reader.add("", str(error).splitlines()[0])
        return
    for violation in policy.violations(message):
        path = (
            violation.field if violation.field in reader.lines else violation.field.replace('["', ".").replace('"]', "")
        )
        reader.add(path, violation.description)


def _check_fields(reader: _Reader, message_class: type[Message], value: Mapping[str, Any], path: str) -> None:
    """Find unknown fields and wrong types one by one: ParseDict alone stops at the first and forgets its index."""
    descriptor = message_class.DESCRIPTOR
    by_name = {field.name: field for field in descriptor.fields} | {
        field.json_name: field for field in descriptor.fields
    }
    for key, content in value.items():
        inner = f"{path}.{key}" if path else key
        field = by_name.get(key)
        if field is None:
            known = ", ".join(sorted(one.name for one in descriptor.fields))
            reader.add(inner, f"unknown field; {descriptor.full_name} has: {known}")
        elif (nested := _nested(field)) is None:
            try:
                json_format.ParseDict({key: content}, message_class())
            except json_format.ParseError as error:
                reader.add(inner, str(error).splitlines()[0])
        else:
            for where, child in _instances(field, content, inner):
                if isinstance(child, dict):
                    _check_fields(reader, nested, child, where)
                elif child is not None:
                    reader.add(where, f"must be a mapping of the fields of {nested.DESCRIPTOR.full_name}")


def _nested(field: Field) -> type[Message] | None:
    """Return the class of our own messages inside a field; None for scalars and well-known types."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        kind = kind.fields_by_name["value"].message_type
    if kind is None or kind.full_name.startswith("google.protobuf."):
        return None
    return GetMessageClass(kind)


def _instances(field: Field, content: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of each message in a field, whether it is single, repeated or a map."""
    if field.message_type.GetOptions().map_entry and isinstance(content, dict):
        yield from ((f"{path}.{key}", child) for key, child in content.items())
    elif field.is_repeated and isinstance(content, list):
        yield from ((f"{path}[{index}]", child) for index, child in enumerate(content))
    else:
        yield path, content
