"""The fuzzer itself: it tries every parser, counts what became of it, and prints what it finds."""

import pytest
from hypothesis import strategies as st

from services.ingest.sources import PARSERS
from tests.fuzz import __main__ as fuzzer
from tests.fuzz.targets import ACCEPTED, REFUSED, Target, targets


def test_every_registered_parser_is_a_target() -> None:
    """A new sender is fuzzed without a word."""
    names = {one.name for one in targets()}
    assert {f"parser {name}" for name in PARSERS} <= names
    assert len(names) == len(targets())


@pytest.mark.parametrize("target", targets(), ids=lambda one: one.name)
def test_a_few_examples_of_each_find_nothing(target: Target) -> None:
    """The long run is the nightly one."""
    became, failure = fuzzer.batch(target, 1, 6)
    assert not failure
    assert became.total() == 6


def test_a_finding_is_told_with_its_example(capsys: pytest.CaptureFixture[str]) -> None:
    """It becomes small before it is told, and the seed is said."""

    def run(number: int) -> str:
        assert number < 100, "too large"
        return ACCEPTED if number % 2 else REFUSED

    assert not fuzzer.fuzz(Target("planted", st.integers(0, 100_000), run), 7, 0, 500)
    told = capsys.readouterr().out
    assert "seeds 7-7   FAILED" in told
    assert "AssertionError: too large" in told
    assert "example = 100\n" in told


def test_a_name_that_no_target_has_is_said() -> None:
    """Nothing tried is not nothing found."""
    assert fuzzer.main(["--only", "no such sender"]) == 2
