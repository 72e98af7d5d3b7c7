"""What follows from a run's rows alone: levels, limits, replies that were of no use."""

from dataclasses import replace

import pytest

from services.agents.runs.domain import (
    Kind,
    Run,
    RunState,
    Step,
    StepState,
    answers_of,
    derived_id,
    last_reply,
    levels_below,
    limit_reached,
    may_delegate,
    sentence,
    useless_replies,
)

RUN = Run(
    run_id="7f3f2ad2-6a3f-4c5e-9d6b-0d3a5c1b7e11",
    template_id="repair",
    template_version=1,
    template=b"",
    state=RunState.RUNNING,
    incident_id="6f3f2ad2-6a3f-4c5e-9d6b-0d3a5c1b7e11",
    incident=b"",
    root_run_id="7f3f2ad2-6a3f-4c5e-9d6b-0d3a5c1b7e11",
    depth=1,
    levels=3,
    goal="",
    target_ids=(),
    requester="service/router",
    marks="",
    token_limit=100,
    cost_limit_micros=0,
    time_limit=10.0,
)


def model(number: int) -> Step:
    """Return an answered question."""
    return Step(number, Kind.MODEL, StepState.SUCCEEDED)


def call(number: int, *, dropped: bool = False) -> Step:
    """Return a step that answers a call."""
    state = StepState.FAILED if dropped else StepState.SUCCEEDED
    return Step(number, Kind.READ, state, call_id=f"call-{number}", dropped=dropped)


@pytest.mark.parametrize(
    ("max_depth", "depth", "levels", "left"),
    [(3, 0, 0, 3), (0, 0, 0, 0), (3, 1, 3, 2), (1, 1, 3, 1), (3, 1, 1, 0), (3, 3, 3, 0), (3, 4, 0, 0)],
)
def test_levels_only_shrink(max_depth: int, depth: int, levels: int, left: int) -> None:
    """A run has no more levels below it than its template, its parent and the longest path leave."""
    parent = replace(RUN, depth=depth, levels=levels) if depth else None
    assert levels_below(max_depth, parent) == left


def test_who_may_delegate() -> None:
    """Whoever names children, has levels left and is not the last of a path."""
    assert may_delegate(RUN, ["look"])
    assert not may_delegate(RUN, [])
    assert not may_delegate(replace(RUN, levels=0), ["look"])
    assert not may_delegate(replace(RUN, depth=4), ["look"])


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (RUN, None),
        (replace(RUN, worked=10.0), "time"),
        (replace(RUN, token_count=100), "tokens"),
        (replace(RUN, cost_micros=10**9), None),
        (replace(RUN, cost_micros=5, cost_limit_micros=5), "cost in millionths"),
        (replace(RUN, steps=(model(1), call(2))), "steps"),
        (replace(RUN, steps=(model(1), Step(2, Kind.PROOF))), None),
    ],
)
def test_limits(run: Run, what: str | None) -> None:
    """Each is reached at its value; no limit of cost is none, and proofs are no steps of the agent."""
    found = limit_reached(run, 2)
    assert (found[0] if found else None) == what


def test_replies_of_no_use() -> None:
    """Those in a row at the end count; one whose calls were all understood begins the count anew."""
    bad = [model(1), call(2, dropped=True), model(3), call(4), call(5, dropped=True)]
    assert useless_replies(bad) == 2
    assert useless_replies([*bad, model(6), call(7)]) == 0
    assert useless_replies([*bad, model(6)]) == 3
    assert useless_replies([]) == 0


def test_answers_belong_to_the_newest_reply() -> None:
    """A step answers a call of the reply before it."""
    steps = [model(1), call(2), model(3), call(4)]
    newest = last_reply(steps)
    assert newest == steps[2]
    assert list(answers_of(steps[2], steps)) == ["call-4"]
    assert last_reply([]) is None


def test_ids_are_the_same_for_every_try() -> None:
    """They differ by run, kind and number, and by nothing else."""
    assert derived_id(RUN.run_id, "action", 4) == derived_id(RUN.run_id, "action", 4)
    assert len({derived_id(RUN.run_id, kind, number) for kind in ("action", "model") for number in (1, 2)}) == 4
    assert sentence("x" * 2000).endswith("…")
