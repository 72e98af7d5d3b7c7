"""Who may import whom."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.source import ROOT, SERVICES, imported, python_files

DOMAINS = sorted((ROOT / "services").glob("*/domain.py"))


def test_the_contracts_hold() -> None:
    """Services are independent, mesh knows none of them, nobody imports the command, only agents knows models."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [command, "--config", ROOT / ".importlinter", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOMAINS, ids=lambda path: path.parent.name)
def test_a_domain_knows_only_the_standard_library(path: Path) -> None:
    """domain.py imports the standard library, re2 and its own package, nothing else."""
    own = f"services.{path.parent.name}."
    allowed = {*sys.stdlib_module_names, "re2"}
    foreign = [name for name in imported(path) if name.partition(".")[0] not in allowed and not name.startswith(own)]
    assert foreign == []


def test_only_agents_knows_a_model_library() -> None:
    """No file outside services/agents imports litellm, openai or anthropic."""
    models = ("litellm", "openai", "anthropic")
    files = [path for path in python_files("services") if ROOT / "services" / "agents" not in path.parents]
    assert [str(path) for path in files for name in imported(path) if name.startswith(models)] == []


def test_agents_imports_its_model_library_lazily() -> None:
    """Importing it costs seconds and 185 MB: never at the top of a module."""
    for path in python_files("services/agents"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.startswith(("import litellm", "from litellm"))], path


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_the_same_rooms(name: str) -> None:
    """A reader of one service knows all: main.py and settings.py, and a servicer unless it serves HTTP only."""
    folder = ROOT / "services" / name
    wanted = {"main.py", "settings.py"} | (set() if name == "bridge" else {"servicer.py"})
    assert wanted - {path.name for path in folder.iterdir()} == set()


def test_nothing_is_called_common() -> None:
    """A name that says nothing attracts everything."""
    shapeless = {"common", "utils", "util", "helpers", "base", "misc"}
    assert [str(path) for path in python_files("services") if {*path.parts, path.stem} & shapeless] == []
