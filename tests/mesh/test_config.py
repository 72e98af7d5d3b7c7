"""Mistakes in YAML are told with file, line and field."""

from pathlib import Path

import pytest

from opsmesh.config.v1 import identities_pb2
from services.mesh.config import ConfigError, load_all, load_yaml

GOOD = """\
trust_domain: opsmesh.local
identities:
  - identity: service/router
    permissions: [audit.append]
"""


def mistakes(folder: Path, text: str) -> list[str]:
    """Return the problems of a file, without its folder."""
    path = folder / "identities.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_yaml(path, identities_pb2.Identities)
    return [str(problem).removeprefix(f"{folder}/") for problem in raised.value.problems]


def test_a_good_file_is_a_message(tmp_path: Path) -> None:
    """What fits the IDL is read."""
    path = tmp_path / "identities.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_yaml(path, identities_pb2.Identities).identities[0].permissions == ["audit.append"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("permissions", "permisions"), "identities.yaml:4: identities[0].permisions: unknown field"),
        (GOOD.replace("[audit.append]", "[audit.append, 7]"), "identities.yaml:4: identities[0].permissions: Failed"),
        (GOOD.replace("[audit.append]", "[Nope]"), "identities.yaml:4: identities[0].permissions[0]: does not match"),
        (GOOD + "    reads_need_grant: maybe\n", "identities.yaml:5: identities[0].reads_need_grant: Failed"),
        (GOOD + "trust_domain: twice\n", "identities.yaml:5: trust_domain: this key is given twice"),
        (GOOD.replace("service/router", "router"), "identities.yaml:3: identities[0].identity: does not match"),
        ("trust_domain: x\nidentities: []\n", "identities.yaml:2: identities: must contain at least 1 item"),
        ("trust_domain: x\nidentities:\n  - just text\n", "identities.yaml:3: identities[0]: must be a mapping"),
        ("- a\n- b\n", "identities.yaml:1: must be a mapping"),
        ("a: [1\nb: 2\n", "identities.yaml:2: not YAML"),
        ("a: !!python/object:os.system x\n", "identities.yaml:1: a: unknown field"),
        ("&a [*a]\n", "identities.yaml:1:"),
        ("", "identities.yaml:1: trust_domain"),
        ("a: \x00\n", "identities.yaml:1: not YAML"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    """Unknown fields, wrong types, broken bounds and broken YAML name file, line and field."""
    assert mistakes(tmp_path, text)[0].startswith(expected)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Two typos give two problems, over all files of a folder."""
    (tmp_path / "a.yaml").write_text(GOOD.replace("identity:", "identty:"), encoding="utf-8")
    (tmp_path / "b.yaml").write_text(GOOD.replace("trust_domain", "trustdomain"), encoding="utf-8")
    (tmp_path / "c.yaml").write_text(GOOD, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_all(tmp_path, identities_pb2.Identities)
    assert {problem.file.name for problem in raised.value.problems} == {"a.yaml", "b.yaml"}


def test_a_bomb_of_aliases_is_refused(tmp_path: Path) -> None:
    """A short file that unfolds to billions of values is refused, quickly."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "more than" in mistakes(tmp_path, "\n".join(lines))[0]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """A file that is not there is a problem of that file."""
    with pytest.raises(ConfigError, match="No such file"):
        load_yaml(tmp_path / "none.yaml", identities_pb2.Identities)
