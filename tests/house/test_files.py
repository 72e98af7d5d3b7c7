"""Sizes, words and habits of the source files."""

import ast
from pathlib import Path

import pytest

from tests.house.source import ROOT, calls, dotted, imported, python_files, tree

LINES_MAX = 400
OURS = python_files("services", "tests", "protos")
TEXTS = [*OURS, *(path for kind in ("*.proto", "*.sql") for path in ROOT.glob(f"[ps]*/**/{kind}"))]
SHELL = {
    "os.system", "os.popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.startfile", "eval", "exec", "compile",
    "__import__", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell",
}  # fmt: skip
SPAWNERS = ("subprocess", "pty", "multiprocessing", "pexpect", "paramiko", "fabric", "sh", "ctypes", "runpy", "code")
# httpx is for the signed webhook of the notice channels, whose URLs are configuration.
HTTP = ("requests", "urllib.request", "aiohttp", "http.client", "urllib3")
GATEWAY = python_files("services/gateway")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_a_page(path: Path) -> None:
    """A file of more than four hundred lines is split."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MAX


@pytest.mark.parametrize("path", GATEWAY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_gateway_starts_no_program(path: Path) -> None:
    """No shell, no subprocess, no evaluated text, no library for it in the process that holds the credentials."""
    names = [name for name, _ in calls(path)]
    assert not [name for name in names if name in SHELL or name.startswith(("os.exec", "os.spawn"))]
    assert not [name for name in imported(path) if name.partition(".")[0] in SPAWNERS]
    assert not [name for name in imported(path) if name.startswith(HTTP)]


@pytest.mark.parametrize("path", GATEWAY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_gateway_names_its_attributes(path: Path) -> None:
    """What could be called cannot be chosen by text: no getattr with a computed name on a module."""
    risky = [
        node
        for name, node in calls(path)
        if name == "getattr" and node.args and dotted(node.args[0]) in {"os", "builtins", "sys", "importlib"}
    ]
    assert risky == []


def test_no_mocks() -> None:
    """Fakes are written by hand, at ports."""
    assert [
        str(path) for path in python_files("tests") for name in imported(path) if name.startswith("unittest.mock")
    ] == []


def test_no_sleeps_in_tests() -> None:
    """A test waits for something, never for time; sleep(0) lets others run."""
    found = []
    for path in python_files("tests"):
        for name, node in calls(path):
            if name in {"time.sleep", "asyncio.sleep"} and not _is_zero(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_nothing_names_the_machine_it_was_written_on() -> None:
    """The repository works anywhere."""
    traces = ["/" + "work/", "/" + "tmp/brief"]
    assert [str(path) for path in TEXTS for trace in traces if trace in path.read_text(encoding="utf-8")] == []


def test_every_module_says_why_it_exists() -> None:
    """A module begins with a docstring."""
    empty = [
        str(path) for path in OURS if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree(path))
    ]
    assert empty == []


def _is_zero(node: ast.Call) -> bool:
    """Say whether a call's only argument is 0."""
    return len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
