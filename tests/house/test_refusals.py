"""Every refusal says what its text promises to say."""

import ast
import string
from pathlib import Path

import pytest

from opsmesh.type.v1 import error_reason_pb2
from services.cli.main import GROUPS
from services.mesh.errors import spec
from tests.house.source import ROOT, calls, dotted, python_files

FILES = [path for path in python_files("services") if "Refusal(" in path.read_text(encoding="utf-8")]
# The chain fills in the first two, `errors.listing` the third; `opsmesh tools call` and friends are literal words.
FILLED = {"service", "method", "list"}


def missing(node: ast.Call) -> set[str]:
    """Return the placeholders of the reason's text that a `Refusal(...)` call leaves out."""
    name = dotted(node.args[0]).rpartition(".")[2] if node.args else ""
    if name not in error_reason_pb2.ErrorReason.keys() or any(word.arg is None for word in node.keywords):  # noqa: SIM118
        return set()
    words = spec(error_reason_pb2.ErrorReason.Value(name))
    wanted = {field for _, field, _, _ in string.Formatter().parse(words.text + words.next) if field}
    return wanted - FILLED - {word.arg for word in node.keywords if word.arg}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_not_found_names_a_command_that_exists(path: Path) -> None:
    """NOT_FOUND of a kind that has no command group of its name says which command lists it."""
    for name, node in calls(path):
        words = {word.arg: word.value for word in node.keywords if word.arg}
        if name == "Refusal" and node.args and dotted(node.args[0]).endswith("ERROR_REASON_NOT_FOUND"):
            kind = words["resource"].value if isinstance(words["resource"], ast.Constant) else None
            assert "list" in words or (isinstance(kind, str) and kind + "s" in GROUPS), f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_refusal_fills_in_its_text(path: Path) -> None:
    """Each `{name}` in the text of a reason is given where the refusal is raised."""
    gaps = {f"line {node.lineno}": gap for name, node in calls(path) if name == "Refusal" and (gap := missing(node))}
    assert gaps == {}
