"""Breaker, retry budget and strict JSON: the parts that need no provider."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.agents.breaker import Breaker, State
from services.agents.domain import Endpoint, Message, Price, Question, Speaker, Usage, expected
from services.agents.retries import RetryBudget
from services.agents.strict_json import UnreadableError, canonical, read_object


def test_a_breaker_opens_tries_once_and_closes() -> None:
    """Five failures in a row open it; after the pause one call may try; its failure doubles the pause."""
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(4):
        breaker.failed("503")
    breaker.succeeded()
    for _ in range(5):
        assert breaker.enter(1)
        breaker.failed("503")
    assert (breaker.state, breaker.enter(1), breaker.last_failure) == (State.OPEN, False, "503")
    now[0] += 15
    assert breaker.state is State.HALF_OPEN
    assert (breaker.enter(5), breaker.enter(5)) == (True, False)
    breaker.failed("503")
    assert breaker.seconds_left == 30
    now[0] += 30
    assert breaker.enter(5)
    now[0] += 6
    assert breaker.enter(5), "a probe that never reports does not hold the place for ever"
    breaker.succeeded()
    assert (breaker.state, breaker.last_failure) == (State.CLOSED, "")


def test_retries_are_a_fraction_of_replies() -> None:
    """Ten at once, then one for five replies."""
    budget = RetryBudget()
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(5):
        budget.earn()
    assert [budget.take(), budget.take()] == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":1e999}',
        '{"a":1,"a":1}',
        "{" * 5000,
        '{"a":' * 70 + "1" + "}" * 70,
        '{"a":"\\ud800"}',
    ],
)
def test_json_that_two_readers_read_differently_is_not_read(text: str) -> None:
    """One object, each key once, finite numbers, whole characters, bounded depth."""
    with pytest.raises(UnreadableError):
        read_object(text)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers() | st.text(st.characters(codec="utf-8"))))
def test_canonical_json_is_read_as_it_was(value: dict[str, object]) -> None:
    """What we write, we read."""
    assert read_object(canonical(value)) == value


def test_a_reservation_covers_what_a_call_can_use() -> None:
    """Three bytes a token and the whole answer; a price is rounded up, nothing is free but nothing."""
    question = Question("routing", "", (Message(Speaker.USER, "ä" * 300),), max_output_tokens=50)
    usage = expected(question, Endpoint("openai/a", "openai", max_tokens=100))
    assert usage.output_tokens == 50
    assert usage.input_tokens >= 200
    assert (Price(1, 0).cost(Usage(1, 0)), Price(1, 0).cost(Usage(0, 5))) == (1, 0)
