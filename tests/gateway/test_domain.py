"""The order of what a gateway believes, as pure functions."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.gateway import domain
from services.gateway.domain import Effect, Grant, Key, Lease, Proposal, Standing, State

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
KEY = Key("opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload", uuid.UUID(int=7))
PROPOSAL = Proposal(KEY, b"digest", "service/automation", "svc:demo/checkout", ("process_id",), needs_fence=True)
GRANT = Grant(
    grant_id=str(uuid.UUID(int=1)),
    method=KEY.method,
    digest=b"digest",
    caller="service/automation",
    request_id=str(KEY.request_id),
    target_id="svc:demo/checkout",
    fence=1,
    precondition={"process_id": "7"},
    policy_set_version=3,
    kill_epoch=2,
    issue_time=NOW,
    expire_time=NOW + timedelta(seconds=30),
)
EFFECT = Effect(
    key=KEY,
    state=State.STARTED,
    tries=1,
    digest=b"digest",
    caller="service/automation",
    request=b"",
    authority=b"",
    target_id="svc:demo/checkout",
    environment="demo",
    fence=1,
    incident_id="",
    execution_id="",
    step_id="",
    trace_id="",
    response=None,
    reason="",
    detail="",
    settler="",
    start_time=NOW,
    deadline_time=NOW,
    end_time=None,
    resolve_tries=0,
    remaining=1.0,
)


@pytest.mark.parametrize(
    ("effect", "standing"),
    [
        (None, Standing.START),
        (EFFECT, Standing.IN_FLIGHT),
        (replace(EFFECT, remaining=0.0), Standing.RESOLVE),
        (replace(EFFECT, state=State.SUCCEEDED), Standing.ANSWER),
        (replace(EFFECT, state=State.FAILED), Standing.ANSWER),
        (replace(EFFECT, state=State.UNKNOWN), Standing.ANSWER),
        (replace(EFFECT, state=State.NOT_STARTED), Standing.START),
        *((replace(EFFECT, state=state, digest=b"other"), Standing.REUSED) for state in State),
        *((replace(EFFECT, state=state, caller="human/operator"), Standing.REUSED) for state in State),
    ],
)
def test_a_call_meets_the_effect_of_its_request_id(effect: Effect | None, standing: Standing) -> None:
    """Content and caller come first, then the state, then the deadline."""
    assert domain.standing(effect, PROPOSAL) is standing


def test_a_grant_fits_from_its_minting_to_its_end_with_the_skew() -> None:
    """Five seconds of skew at both ends, and not a second more."""
    fitting = (-5, 0, 30, 35)
    assert [domain.misfit(GRANT, PROPOSAL, NOW + timedelta(seconds=at)) for at in fitting] == ["", "", "", ""]
    assert domain.misfit(GRANT, PROPOSAL, NOW + timedelta(seconds=-5.1)) == "it is not of this time"
    assert domain.misfit(GRANT, PROPOSAL, NOW + timedelta(seconds=35.1)) == "it has expired"
    late = replace(GRANT, expire_time=NOW + timedelta(seconds=30.1))
    assert domain.misfit(late, PROPOSAL, NOW) == "it is not of this time"


def test_a_lease_is_believed_for_less_than_two_seconds_from_when_it_was_asked() -> None:
    """Never had, 1.75 seconds, more: what is left of two is for the way to the backend."""
    lease = Lease(policy_set_version=3, kill_epoch=2, sent=0.0)
    assert not domain.is_fresh(None, 0.0)
    assert domain.is_fresh(lease, 1.75)
    assert not domain.is_fresh(lease, 1.751)


@pytest.mark.parametrize(("version", "epoch", "stale"), [(3, 2, False), (4, 2, True), (2, 2, True), (3, 3, False)])
def test_a_grant_is_stale_under_another_policy_but_not_for_any_kill(version: int, epoch: int, *, stale: bool) -> None:
    """A newer kill is looked at by its scope; a lease that knows less than the grant is refused."""
    assert domain.is_stale(GRANT, Lease(version, epoch, 0.0)) is stale
    assert domain.is_stale(GRANT, Lease(3, 1, 0.0))


def test_a_difference_names_what_changed() -> None:
    """Both values of each field, in order of name; nothing when nothing changed."""
    assert domain.difference({"b": "1", "a": "2"}, {"a": "2", "b": "1"}) == ""
    assert domain.difference({"b": "1", "a": "2"}, {"a": "3"}) == "a was 2, is 3, b was 1, is (nothing)"


def test_intents_of_tries_have_ids_of_their_own() -> None:
    """Each try and each phase has its id, always the same."""
    ids = {domain.intent_id(KEY, 1), domain.intent_id(KEY, 2), domain.outcome_id(KEY, 1), domain.outcome_id(KEY, 2)}
    assert len(ids) == 4
    assert domain.intent_id(KEY, 1) == uuid.uuid5(uuid.NAMESPACE_OID, f"{KEY.method}/{KEY.request_id}/1")


def test_plain_text_is_one_bounded_line() -> None:
    """Control, formatting and surrogate characters go, white space becomes single spaces, the rest is cut."""
    assert domain.plain("a\u200bb\x07 \n\tc\ud800", 10) == "ab c"
    assert domain.plain("x" * 11, 10) == "x" * 9 + "…"
