"""The state an effect relies on, as text: guardrails writes it into grants, the gateway compares it before the act.

Both sides must say the same state with the same words, so they share these.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.message import Message

from services.mesh.tools import Tool


def read_of(tool: Tool, target_id: str) -> tuple[Tool, Message] | None:
    """Return the tool that reads the precondition of another and its request; None when that one has none."""
    if not tool.spec.precondition_rpc:
        return None
    read = tool.sibling(tool.spec.precondition_rpc)
    return read, read.request_class(**{read.spec.target_field: target_id})


def snapshot(response: Message, fields: Iterable[str]) -> Mapping[str, str]:
    """Return response fields as text: enum values by name, everything else as `str` says it."""
    return {name: _text(response, name) for name in fields}


def _text(response: Message, name: str) -> str:
    """Return one field as text."""
    value: Any = getattr(response, name)
    kind = response.DESCRIPTOR.fields_by_name[name].enum_type
    known = kind.values_by_number.get(value) if kind else None
    return str(known.name if known else value)
