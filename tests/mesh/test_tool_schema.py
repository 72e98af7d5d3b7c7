"""What a model is offered: schemas of the IDL that every provider accepts, pinned by a digest."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from opsmesh.agents.v1 import model_service_pb2
from services.mesh import policy, snapshot
from services.mesh.models import bounds, tool_schema
from services.mesh.models.tool_schema import NotOfferedError, Offer, catalogue, changed, offer, offer_message
from services.mesh.tools import Tool, find_tool, tools
from tests.house.source import ROOT
from tests.mesh.schemas import Validator, compile_proto, fits

TOOLS = list(tools().values())
KEYWORDS = {
    "type", "properties", "required", "additionalProperties", "propertyNames", "items", "anyOf", "enum", "description",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern",
    "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties",
}  # fmt: skip
PROBE = """
message Everything {
  enum Kind { KIND_UNSPECIFIED = 0; KIND_A = 1; KIND_B = 2; KIND_C = 3; }
  message Inner { string name = 1 [(buf.validate.field).string = {min_len: 1, max_len: 9000}]; }
  string request_id = 1 [(buf.validate.field).string.uuid = true];
  string password = 2 [(buf.validate.field).string.max_len = 9, (opsmesh.policy.v1.field).sensitive = true];
  Kind kind = 3 [(buf.validate.field).enum = {defined_only: true, not_in: [0, 3]}];
  int64 count = 4 [(buf.validate.field).int64 = {gt: 0, lt: 10}];
  double share = 5 [(buf.validate.field).double = {gte: 0, lt: 1}];
  repeated string names = 6 [(buf.validate.field).repeated = {min_items: 1, max_items: 3, unique: true,
    items: {string: {pattern: "^[a-z]+$", max_len: 9}}}];
  map<string, Inner> inners = 7 [(buf.validate.field).map = {max_pairs: 2, keys: {string: {min_len: 1, max_len: 4}}}];
  oneof choice { option (buf.validate.oneof).required = true; string word = 8
    [(buf.validate.field).string.max_len = 5]; Inner inner = 9; }
  google.protobuf.Duration wait_duration = 10;
  google.protobuf.Timestamp start_time = 11;
  optional bool sure = 12;
  string odd = 13 [(buf.validate.field).string = {pattern: "^a.b$", max_len: 9},
    (buf.validate.field).ignore = IGNORE_IF_ZERO_VALUE];
  fixed64 huge = 14 [(buf.validate.field).fixed64.gte = 0];
}
message Bytes { bytes raw = 1 [(buf.validate.field).bytes.max_len = 9]; }
message Secret { string key = 1 [(buf.validate.field).string.min_len = 1,
    (opsmesh.policy.v1.field).sensitive = true]; }
message Loose { google.protobuf.Struct any = 1; }
message Keyed { map<int32, string> byte = 1; }
message Node { string name = 1 [(buf.validate.field).string.max_len = 9]; Node child = 2; }
message Endless { Endless next = 1 [(buf.validate.field).required = true]; }
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, type[Message]]:
    """Give messages that have one of everything."""
    return compile_proto(tmp_path_factory.mktemp("probe"), "schema", PROBE)


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas inside it."""
    yield schema
    inside = [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]
    inside += [schema[name] for name in ("items", "propertyNames") if name in schema]
    inside += [schema["additionalProperties"]] if isinstance(schema.get("additionalProperties"), dict) else []
    for one in inside:
        yield from parts(one)


def offered() -> list[Offer]:
    """Return every message of the IDL that can be offered."""
    found = []
    for message in snapshot.messages():
        try:
            found.append(offer_message("one", "", GetMessageClass(message)))
        except NotOfferedError:
            continue
    return found


@pytest.mark.parametrize("one", [*(offer(tool) for tool in TOOLS), *offered()], ids=lambda one: one.method)
def test_a_schema_keeps_to_what_providers_accept(one: Offer) -> None:
    """Known keywords, an object without alternatives at the top, no bound that a grammar of llama.cpp refuses."""
    Validator.check_schema(dict(one.schema))
    assert one.schema["type"] == "object"
    assert not {"anyOf", "enum"} & set(one.schema)
    for part in parts(one.schema):
        assert set(part) <= KEYWORDS
        assert part.get("maxLength", 0) < 2000
        assert part.get("maxItems", 0) < 2000
        told = part.get("description", "")
        assert "pattern" not in part or bounds.agreed(part["pattern"]) or told.startswith(("seconds", "UTC"))
        assert part.get("type") != "object" or "additionalProperties" in part
    assert json.loads(json.dumps(one.function()))["function"]["parameters"] == one.schema


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.rpc)
def test_every_tool_is_offered(tool: Tool) -> None:
    """Each has a name that providers accept, its summary and when to use it, and no request_id."""
    one = offer(tool)
    assert one.name.replace("_", "").isalnum()
    assert len(one.name) <= 64
    assert tool.spec.summary in one.description
    assert tool.spec.when_to_use in one.description
    assert "request_id" not in one.schema["properties"]


@pytest.mark.parametrize("one", [offer(tool) for tool in TOOLS], ids=lambda one: one.name)
def test_an_offer_is_what_the_model_service_takes(one: Offer) -> None:
    """Name, description and schema are within the bounds of a ToolDefinition."""
    definition = model_service_pb2.ToolDefinition(
        name=one.name, description=one.description, parameters_json_schema=one.schema_json
    )
    assert policy.violations(definition) == []


def test_a_tool_that_changed_or_went_is_named() -> None:
    """A template is pinned by the digests of its tools."""
    offers = catalogue(TOOLS)
    pinned = {name: one.digest for name, one in offers.items()}
    assert changed(pinned, offers) == ()
    first, second, *_ = sorted(offers)
    without = {name: one for name, one in offers.items() if name != second}
    assert changed({**pinned, first: "0" * 64}, without) == (first, second)


def test_a_catalogue_is_narrowed_to_targets() -> None:
    """A run sees its incident's targets and no others, under the same pins; without any, no tool that needs one."""
    one = catalogue(TOOLS, targets=("svc:prod/web",))["workload_RestartWorkload"]
    assert one.schema["properties"]["target_id"] == {"type": "string", "enum": ["svc:prod/web"]}
    assert one.digest == offer(find_tool("RestartWorkload")).digest
    without = catalogue(TOOLS, targets=())
    assert {one.method for one in without.values()} == {tool.name for tool in TOOLS if not tool.spec.target_field}


def test_a_catalogue_has_one_tool_a_name() -> None:
    """All tools fit into one catalogue; the same one twice does not."""
    assert len(catalogue(TOOLS)) == len(TOOLS)
    with pytest.raises(NotOfferedError, match="would both be called"):
        catalogue([TOOLS[0], TOOLS[0]])


def test_the_schema_says_the_bounds(probe: dict[str, type[Message]]) -> None:
    """Every kind of field appears with its bounds; what is hidden does not."""
    one = offer_message("everything", "", probe["Everything"])
    inner = {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 1000}},
        "additionalProperties": False,
        "required": ["name"],
    }
    found = one.schema["properties"]
    assert {"request_id", "password"} & set(found) == set()
    assert one.schema["required"] == ["kind", "count", "names", "choice"]
    assert found["kind"] == {"type": "string", "enum": ["KIND_A", "KIND_B"]}
    assert found["count"] == {"type": "integer", "minimum": 1, "maximum": 9}
    assert found["share"]["exclusiveMaximum"] == 1
    assert found["names"]["items"] == {"type": "string", "pattern": "^[a-z]+$", "maxLength": 9}
    assert (found["names"]["minItems"], found["names"]["maxItems"], found["names"]["uniqueItems"]) == (1, 3, True)
    assert found["inners"]["additionalProperties"] == inner
    assert found["inners"]["propertyNames"] == {"type": "string", "minLength": 1, "maxLength": 4}
    assert [list(option["properties"]) for option in found["choice"]["anyOf"]] == [["word"], ["inner"]]
    assert found["sure"] == {"type": "boolean"}
    assert found["huge"]["maximum"] == 2**53 - 1
    assert fits(found["wait_duration"], "1.5s")
    assert not fits(found["wait_duration"], "P1D")
    assert fits(found["start_time"], "2026-01-31T08:00:00Z") is False
    assert fits(found["start_time"], "2026-01-28T08:00:00Z")


def test_what_a_schema_cannot_say_is_told(probe: dict[str, type[Message]]) -> None:
    """A pattern that ECMA-262 reads otherwise goes into the description, and the offer notes it."""
    one = offer_message("everything", "", probe["Everything"])
    assert "pattern" not in one.schema["properties"]["odd"]
    assert "^a.b$" in one.schema["properties"]["odd"]["description"]
    assert [note.rpartition(".")[2] for note in one.notes if ".odd:" in note] != []


@pytest.mark.parametrize("name", ["Bytes", "Secret", "Loose", "Keyed", "Endless"])
def test_what_no_model_can_fill_in_is_refused(probe: dict[str, type[Message]], name: str) -> None:
    """Bytes, a required secret, a value without bounds, keys that are no text, a message without end."""
    with pytest.raises(NotOfferedError):
        offer_message("one", "", probe[name])


def test_nesting_is_bounded(probe: dict[str, type[Message]]) -> None:
    """A message that contains itself is offered as deep as the limit says, and no deeper."""
    schema: Any = offer_message("node", "", probe["Node"]).schema
    depth = 0
    while "child" in schema["properties"]:
        schema, depth = schema["properties"]["child"], depth + 1
    assert depth == tool_schema.DEPTH_MAX


@pytest.mark.parametrize(
    ("pattern", "same"),
    [
        ("^[a-z][a-z0-9_.-]{0,62}$", True), ("^(service|human)/[a-z]+$", True), (r"^[0-9]+\.[0-9]+$", True),
        ("^a|b$", False), ("^a.b$", False), (r"^\s$", False), (r"^\bA$", False), ("^(?i)a$", False), ("[a-z]+", False),
        ("^[[:alpha:]]$", False), (r"^\pL$", False), ("^a+?$", False), ("^a(?=b)$", False), ("^(a$", False),
        ("^a$b$", False), ("^[]a]$", False), (r"^\x41$", False), ("^a{2000}$", False),
    ],
)  # fmt: skip
def test_a_pattern_is_offered_only_where_both_languages_agree(pattern: str, *, same: bool) -> None:
    """RE2 checks it, ECMA-262 generates from it: what they read differently is told in words."""
    assert bounds.agreed(pattern) is same


def test_choices_narrow_a_field_to_what_exists(probe: dict[str, type[Message]]) -> None:
    """A choice becomes an enum, the digest stays; nothing to choose from takes a member of a oneof away."""
    plain = offer_message("everything", "", probe["Everything"])
    name = "probe.schema.Everything.Inner.name"
    one = offer_message("everything", "", probe["Everything"], {name: ("x", "y")})
    assert one.schema["properties"]["inners"]["additionalProperties"]["properties"]["name"]["enum"] == ["x", "y"]
    assert one.digest == plain.digest
    with pytest.raises(NotOfferedError):
        offer_message("everything", "", probe["Everything"], {name: ()})


def test_the_digest_is_the_same_in_another_process() -> None:
    """A template pinned by one process holds in every other, whatever its hash seed."""
    code = (
        "from services.mesh.models.tool_schema import offer\nfrom services.mesh.tools import find_tool\n"
        "print(offer(find_tool('RestartWorkload')).digest)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == offer(find_tool("RestartWorkload")).digest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("max_len: 9", "max_len: 8"),
        ("string a = 1", "string a = 2"),
        ("string a", "string b"),
        ("max_len: 9}", "max_len: 9}, (opsmesh.policy.v1.field).untrusted = true"),
        ("string request_id = 9 [(buf.validate.field).string.uuid = true];", ""),
        ("KIND_B = 2", "KIND_B = 3"),
    ],
)
def test_the_digest_changes_with_what_it_pins(tmp_path: Path, before: str, after: str) -> None:
    """A bound, a number, a name, a mark, a hidden field, an enum: each disables a pinned template."""
    source = (
        "message One { string a = 1 [(buf.validate.field).string = {max_len: 9}]; Kind kind = 3;"
        " string request_id = 9 [(buf.validate.field).string.uuid = true]; }"
        " enum Kind { KIND_UNSPECIFIED = 0; KIND_A = 1; KIND_B = 2; }"
    )
    number = abs(hash((before, after)))
    old = compile_proto(tmp_path, f"old{number}", source)["One"]
    new = compile_proto(tmp_path, f"new{number}", source.replace(before, after))["One"]
    shapes = [json.dumps(tool_schema._structure(tool_schema.described(one))) for one in (old, new)]
    structure = [shape.replace(f"new{number}", f"old{number}") for shape in shapes]
    assert structure[0] != structure[1]
    assert offer_message("one", "", old).digest == offer_message("one", "", old).digest
    assert offer_message("one", "", old).digest != offer_message("one", "another text", old).digest
