"""Documentation that names a test names one that exists."""

import re
from pathlib import Path

import pytest

from tests.house.source import ROOT

NAMED = re.compile(r"(tests/[a-z_/]+\.py)(?:::(test_[a-z0-9_]+))?")
PAGES = sorted(ROOT.glob("docs/*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_tests_that_exist(page: Path) -> None:
    """Whoever wants to see a claim shown can run what is named beside it."""
    missing = []
    for file, name in NAMED.findall(page.read_text(encoding="utf-8")):
        path = ROOT / file
        if not path.is_file() or (name and f"def {name}(" not in path.read_text(encoding="utf-8")):
            missing.append(f"{file}::{name}" if name else file)
    assert missing == []
