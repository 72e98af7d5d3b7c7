"""A snapshot of every policy in the IDL, so that a weakened one shows up as a diff in review.

python -m services.mesh.snapshot           print it
python -m services.mesh.snapshot --write   write tests/protos/policy_snapshot.json
"""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor

import opsmesh
from opsmesh.policy.v1 import policy_pb2
from services.mesh import policy

FILE: Final = Path(__file__).resolve().parents[2] / "tests" / "protos" / "policy_snapshot.json"


def messages() -> Iterator[Descriptor]:
    """Yield every message of our generated code, nested ones too, without map entries."""
    for root in opsmesh.__path__:
        for path in sorted(Path(root).rglob("*_pb2.py")):
            module = ".".join(("opsmesh", *path.relative_to(root).with_suffix("").parts))
            for message in importlib.import_module(module).DESCRIPTOR.message_types_by_name.values():
                yield from _with_nested(message)


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    """Yield a message and those declared inside it."""
    if message.GetOptions().map_entry:
        return
    yield message
    for nested in message.nested_types:
        yield from _with_nested(nested)


def _plain(option: Any) -> dict[str, Any]:
    """Return an option as JSON, defaults included: a dropped flag must show as a changed value."""
    found: dict[str, Any] = json_format.MessageToDict(
        option, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def snapshot() -> dict[str, Any]:
    """Return the policy of every method and of every delicate field, by full name."""
    fields = {
        str(field.full_name): _plain(field.GetOptions().Extensions[policy_pb2.field])
        for message in messages()
        for field in message.fields
        if field.GetOptions().HasExtension(policy_pb2.field)
    }
    return {"methods": {name: _plain(found) for name, found in policy.table().items()}, "fields": fields}


def render() -> str:
    """Return the snapshot as it stands in the file."""
    return json.dumps(snapshot(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        FILE.write_text(render(), encoding="utf-8")
    else:
        sys.stdout.write(render())
