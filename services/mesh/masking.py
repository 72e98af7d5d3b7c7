"""A message as people may see it on record: bounded JSON, its sensitive fields masked."""

from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message

from opsmesh.policy.v1 import policy_pb2
from services.mesh.failures import sentence

JSON_MAX: Final = 4096
MASK: Final = "•••"


def masked_json(message: Message, limit: int = JSON_MAX) -> str:
    """Return a message as bounded proto3 JSON with its sensitive fields masked."""
    shown = type(message)()
    shown.CopyFrom(message)
    _mask(shown)
    text = json_format.MessageToJson(
        shown, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None
    )
    return sentence(text, limit)


def _mask(message: Message) -> None:
    """Replace every sensitive field, at any depth."""
    for field, value in message.ListFields():
        if field.GetOptions().Extensions[policy_pb2.field].sensitive:
            message.ClearField(field.name)
            if field.type == field.TYPE_STRING and not field.is_repeated:
                setattr(message, field.name, MASK)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for child in value if field.is_repeated else [value]:
                _mask(child)
