"""Who must say yes, and what differs: pure rules."""

import itertools
import random
from datetime import UTC, datetime

from google.protobuf import json_format

from services.guardrails.action import changes
from services.guardrails.approvals.rules import (
    CHANGES_MAX,
    VALUE_MAX,
    Answer,
    Change,
    Terms,
    Vote,
    covered,
    differences,
    flat,
    terms,
    told,
)
from services.guardrails.domain import Need, Risk
from tests.guardrails.world import notice

SEED = 20261121
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def vote(person: str, *groups: str, answer: Answer = Answer.APPROVE) -> Vote:
    """Return an answer."""
    return Vote(person, answer, frozenset(groups), "", NOW)


def brute(groups: frozenset[str], people: dict[str, frozenset[str]]) -> bool:
    """Try every way to give each group a person of its own."""
    names = sorted(groups)
    return any(
        all(group in people[person] for group, person in zip(names, chosen, strict=True))
        for chosen in itertools.permutations(people, len(names))
    )


def test_the_matching_is_the_one_of_trying_everything() -> None:
    """For 2,000 random groups and people the matching says what trying every assignment says."""
    dice = random.Random(SEED)  # noqa: S311  a reproducible order
    found = set()
    for _ in range(2000):
        names = [f"g{index}" for index in range(dice.randint(0, 4))]
        people = {
            f"p{index}": frozenset(name for name in names if dice.random() < 0.4) for index in range(dice.randint(0, 5))
        }
        said = covered(frozenset(names), people)
        assert said == brute(frozenset(names), people), (names, people)
        found.add(said)
    assert found == {True, False}


def test_one_person_stands_for_one_group() -> None:
    """Somebody in both groups stands for one of them; a second person is needed for the other, whoever came first."""
    asked = Terms(2, frozenset({"ops", "leads"}))
    both, ops = vote("human/b", "ops", "leads"), vote("human/a", "ops")
    assert not asked.met([both])
    assert not asked.met([ops, vote("human/c", "ops")])
    assert asked.met([ops, both])
    assert asked.met([both, ops])


def test_the_same_person_counts_once_and_a_no_never() -> None:
    """Two answers of one person are one, and a no is none."""
    assert not Terms(2).met([vote("human/a"), vote("human/a")])
    assert not Terms(2).met([vote("human/a"), vote("human/b", answer=Answer.REJECT)])
    assert Terms(2).met([vote("human/a"), vote("human/b")])


def test_critical_needs_two_whatever_policy_says() -> None:
    """CRITICAL never needs fewer than two; 0 goes by risk; groups need as many people as they are."""
    assert terms(Need(0), Risk.CRITICAL).people == 2
    assert terms(Need(1), Risk.CRITICAL).people == 2
    assert terms(Need(3), Risk.CRITICAL).people == 3
    for risk in (Risk.LOW, Risk.MEDIUM, Risk.HIGH):
        assert terms(Need(0), risk).people == 1
    assert terms(Need(1, frozenset({"a", "b", "c"})), Risk.LOW).people == 3


def test_a_diff_names_paths_and_values() -> None:
    """Fields that differ are told by path with both values; absent ones are empty, equal ones silent."""
    before = flat({"name": "a", "labels": {"app": "x"}, "steps": [{"n": 1}, {"n": 2}], "same": True})
    after = flat({"name": "b", "labels": {"app": "x", "tier": "1"}, "steps": [{"n": 1}], "same": True})
    found = differences(before, after)
    assert found == (Change("labels.tier", "", "1"), Change("name", "a", "b"), Change("steps[1].n", "2", ""))
    assert told(found) == "labels.tier (none) -> 1; name a -> b; steps[1].n 2 -> (none)"


def test_a_diff_is_bounded() -> None:
    """However much differs, a diff stays within its bounds."""
    found = differences({}, {f"{index:03}{'k' * 300}": "v" * 5000 for index in range(200)})
    assert len(found) == CHANGES_MAX
    assert all(len(one.after) <= VALUE_MAX and len(one.field) <= 200 for one in found)
    assert len(told(found)) <= 512


def test_a_diff_of_requests_speaks_of_their_fields() -> None:
    """Two requests differ in the fields of the IDL."""
    one = notice()
    other = type(one)()
    other.CopyFrom(one)
    other.title = "another"
    assert changes(one, other) == (Change("title", "a test", "another"),)
    assert changes(one, one) == ()
    assert "title" in json_format.MessageToDict(one)
