"""deploy/models.yaml, as agents reads it and as `opsmesh check` looks at it."""

from pathlib import Path

import pytest

from opsmesh.config.v1 import models_pb2
from services.agents import models
from services.agents.domain import Limits, Usage
from services.mesh.config import load_yaml
from services.mesh.errors import BootError
from tests.mesh.world import ROOT


def write(folder: Path, text: str) -> Path:
    """Write a models file."""
    path = folder / "models.yaml"
    path.write_text(text)
    return path


def test_as_shipped_there_is_no_provider() -> None:
    """Automation-only mode, with the built-in budgets spelled out."""
    found = models.load(ROOT / "deploy" / "models.yaml")
    assert dict(found.roles) == {}
    assert found.limits == Limits()


def test_the_lines_of_the_shipped_file_work_when_uncommented(tmp_path: Path) -> None:
    """The example is a valid file, keys aside."""
    shipped = (ROOT / "deploy" / "models.yaml").read_text().splitlines()
    start = shipped.index("# roles:")
    end = next(index for index, line in enumerate(shipped[start:], start) if line == "#")
    lines = [line.removeprefix("# ").replace("# recordings_folder", "recordings_folder") for line in shipped[start:end]]
    path = write(tmp_path, "\n".join(lines))
    (tmp_path / "recordings").mkdir()
    message = load_yaml(path, models_pb2.Models)
    assert set(message.roles) == {"routing", "agent", "triage"}
    assert models.check(message, path) == []


def test_a_role_becomes_its_models(tmp_path: Path) -> None:
    """Key, address, limits and price are read; a fallback inherits nothing; the key is in no repr."""
    key = tmp_path / "key"
    key.write_text("sk-secret\n")
    key.chmod(0o600)
    text = """
roles:
  routing:
    model: openai/big
    api_key_file: key
    timeout: 12
    max_tokens: 77
    price: {input_micros: 3000000, output_micros: 15000000}
    fallbacks: [{model: openai/small, api_base: "http://127.0.0.1:1/v1", tool_mode: TOOL_MODE_JSON_SCHEMA}]
budgets: {day: {tokens: 5}}
"""
    found = models.load(write(tmp_path, text))
    big, small = found.roles["routing"]
    assert (big.api_key, big.provider, big.seconds, big.max_tokens, big.native_tools) == (
        "sk-secret",
        "openai",
        12,
        77,
        True,
    )
    assert big.price.cost(Usage(1000, 100)) == 4500
    assert (small.api_key, small.provider, small.seconds, small.native_tools) == (
        "",
        "http://127.0.0.1:1",
        30,
        False,
    )
    assert "sk-secret" not in repr(found)
    assert (found.limits.day.tokens, found.limits.day.cost_micros) == (5, Limits().day.cost_micros)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("roles: {routing: {model: openai/a, api_key_file: wide}}", "chmod 600"),
        ("roles: {routing: {model: openai/a, api_key_file: none}}", "cannot be read"),
        ("roles: {routing: {model: openai/a, api_key_file: empty}}", "is empty"),
        ("roles: {routing: {model: recorded}}", "needs the folder"),
        ("roles: {routing: {model: recorded, recordings_folder: nowhere}}", "there is no folder"),
        ("roles: {routing: {model: openai/a, timeout: 900}}", "roles.routing.timeout"),
        ("roles: {routing: {model: openai/a, key: sk-1}}", "unknown field"),
        ("roles: {routing: {model: a, fallbacks: [{model: b, fallbacks: [{model: c}]}]}}", "of its own"),
        ("roles: {routing: {model: a, api_base: 'http://user:pass@host/'}}", "api_base"),
    ],
)
def test_a_mistake_is_a_boot_error(tmp_path: Path, text: str, said: str) -> None:
    """Each is told with what is wrong; a key that others may read is none."""
    (tmp_path / "wide").write_text("sk-1")
    (tmp_path / "wide").chmod(0o644)
    (tmp_path / "empty").touch(0o600)
    with pytest.raises(BootError, match=said):
        models.load(write(tmp_path, text))
