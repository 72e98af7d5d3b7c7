"""Deduplication, correlation and the life of an incident, on plain data."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.ingest.book import Book
from services.ingest.correlation import Words, default_key
from services.ingest.decisions import Decided, DecisionState, Outcome, Result, follow, poll_delay
from services.ingest.domain import (
    REVISIONS_MAX,
    Disposition,
    Inventory,
    InventoryMatch,
    SignalFacts,
    State,
    Tally,
)
from services.ingest.resources import resource_of, target_keys, without_port
from services.ingest.signal import Status, TargetKey

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OPENED, JOINED, DUPLICATE, STALE = Disposition.OPENED, Disposition.JOINED, Disposition.DUPLICATE, Disposition.STALE
FIRING, RESOLVED = Status.FIRING, Status.RESOLVED


def facts(
    status: Status = FIRING, at: int = 100, start: int | None = 100, key: str = "a", where: str = ""
) -> SignalFacts:
    """Return a signal of alert KEY."""
    return SignalFacts("s", "alertmanager", key, status, at, start, where or key, f"incident-{key}-{at}")


def book() -> Book:
    """Return an empty book with an hour's window."""
    return Book(NOW, timedelta(hours=1))


def judged(one: Book, *signals: SignalFacts) -> list[Disposition]:
    """Return the dispositions of signals in order."""
    return [one.judge(signal).disposition for signal in signals]


@pytest.mark.parametrize(
    ("signals", "wanted"),
    [
        ([facts(), facts(), facts()], [OPENED, DUPLICATE, DUPLICATE]),
        ([facts(), facts(RESOLVED, 200), facts()], [OPENED, JOINED, DUPLICATE]),
        ([facts(), facts(RESOLVED, 200), facts(RESOLVED, 200)], [OPENED, JOINED, DUPLICATE]),
        # the resolve overtakes its firing: the late firing opens nothing
        ([facts(RESOLVED, 200), facts()], [STALE, STALE]),
        ([facts(RESOLVED, 200, None), facts(at=150, start=None)], [STALE, STALE]),
        # a later start is another episode, an earlier one is old news; after an end it is another incident
        ([facts(), facts(RESOLVED, 200), facts(at=300, start=300)], [OPENED, JOINED, OPENED]),
        ([facts(), facts(at=300, start=300)], [OPENED, JOINED]),
        ([facts(at=300, start=300), facts()], [OPENED, STALE]),
        ([facts(at=300, start=300), facts(RESOLVED, 200)], [OPENED, STALE]),
        # without a start: after a resolve it begins anew, if it is later
        ([facts(start=None), facts(start=None, at=101)], [OPENED, DUPLICATE]),
        ([facts(start=None), facts(RESOLVED, 200, None), facts(at=300, start=None)], [OPENED, JOINED, OPENED]),
        ([facts(start=None), facts(RESOLVED, 200, None), facts(at=150, start=None)], [OPENED, JOINED, DUPLICATE]),
        # a resolve without the start of its firing ends it all the same
        ([facts(), facts(RESOLVED, 200, None)], [OPENED, JOINED]),
        ([facts(Status.UNSPECIFIED)], [OPENED]),
        ([facts(), facts(Status.UNSPECIFIED, 200)], [OPENED, JOINED]),
        ([facts(), facts(Status.SUPPRESSED, 200)], [OPENED, Disposition.SUPPRESSED]),
        ([facts(Status.SUPPRESSED)], [Disposition.SUPPRESSED]),
        ([facts(Status.NO_DATA), facts(at=50)], [OPENED, STALE]),
        ([replace(facts(), test=True)], [Disposition.TEST]),
    ],
)
def test_what_becomes_of_signals_in_order(signals: list[SignalFacts], wanted: list[Disposition]) -> None:
    """Decided by source time and state, never by arrival."""
    assert judged(book(), *signals) == wanted


def test_an_alert_without_a_start_is_the_same_only_within_the_window() -> None:
    """After the dedupe window the same words are news again."""
    one = book()
    assert judged(one, facts(start=None)) == [OPENED]
    one.now += timedelta(hours=2)
    assert judged(one, facts(start=None, at=200)) == [JOINED]


def test_a_duplicate_joins_its_incident_even_when_that_is_resolved() -> None:
    """The same (alert, start) again never opens anything; a later start does."""
    one = book()
    incident = one.judge(facts()).incident_id
    assert incident
    closed = Book(NOW, timedelta(hours=1))
    closed.load(one.alerts.values(), [Tally(incident, "a", State.RESOLVED)])
    verdict = closed.judge(facts())
    assert (verdict.disposition, verdict.incident_id) == (DUPLICATE, incident)
    assert closed.judge(facts(at=300, start=300)).disposition is OPENED


def test_alerts_of_one_correlation_key_are_one_incident() -> None:
    """Another alert of the same rule on the same target joins; the incident fires until the last is over."""
    one = book()
    assert judged(one, facts(where="k"), facts(key="b", where="k"), facts(key="c")) == [OPENED, JOINED, OPENED]
    incident = one.incidents["incident-a-100"]
    assert (incident.signals, incident.active) == (2, 2)
    judged(one, facts(RESOLVED, 200, where="k"))
    assert incident.active == 1
    judged(one, facts(RESOLVED, 200, key="b", where="k"))
    assert incident.active == 0


@pytest.mark.parametrize("start", [100, None])
def test_what_was_only_observed_does_not_swallow_the_next_firing(start: int | None) -> None:
    """A new firing opens another incident and closes the observed one, also when the sender never resolves."""
    first = book()
    incident = first.judge(facts(start=start)).incident_id
    assert incident
    one = Book(NOW + timedelta(hours=2), timedelta(hours=1))
    one.load(first.alerts.values(), [Tally(incident, "a", State.OBSERVED, active=1, decided=True)])
    assert judged(one, facts(at=300, start=start and 300)) == [OPENED]
    assert one.incidents[incident].replaced
    assert judged(one, facts(at=301, start=start and 300)) == [DUPLICATE]


def test_another_alert_joins_what_was_observed_while_that_fires() -> None:
    """While an observed incident has an alert that is not over, it stays the one of its rule and target."""
    first = book()
    incident = first.judge(facts(where="k")).incident_id
    assert incident
    one = book()
    one.load(first.alerts.values(), [Tally(incident, "k", State.OBSERVED, active=1, decided=True)])
    assert judged(one, facts(key="b", where="k")) == [JOINED]


@pytest.mark.parametrize(
    ("state", "decided", "revised"),
    [
        (State.AWAITING_MODEL, True, True),
        (State.AWAITING_PERSON, True, True),
        (State.OBSERVED, True, True),
        (State.RUNNING, True, False),
        (State.AWAITING_APPROVAL, True, False),
        (State.RESOLVED, True, False),
        (State.OPEN, False, False),
    ],
)
def test_the_last_resolve_has_the_incident_decided_anew_unless_something_acts(
    *,
    state: State,
    decided: bool,
    revised: bool,
) -> None:
    """A revision is made when the sender resolves the last alert, not while an execution runs."""
    first = book()
    incident = first.judge(facts()).incident_id
    one = book()
    one.load(first.alerts.values(), [Tally(incident or "", "a", state, active=1, decided=decided)])
    one.judge(facts(RESOLVED, 200))
    assert one.incidents[incident or ""].revised is revised


def test_inventory_needs_exactly_one_match() -> None:
    """One entry gives the canonical id; none or two keep the raw key, after those of the inventory."""
    checkout = InventoryMatch("svc:demo/checkout", "demo", "local")
    twins = [(InventoryMatch(name, "demo", ""), ["host:shared"]) for name in ("a", "b")]
    inventory = Inventory([(checkout, ["host:web-1", "svc:demo/checkout"]), *twins])
    keys = [TargetKey("host", "host:shared"), TargetKey("host", "host:web-1"), TargetKey("svc", "svc:demo/checkout")]
    found = [(one.target_id, one.match is not None) for one in inventory.resolve(keys)]
    assert found == [("svc:demo/checkout", True), ("host:shared", False)]


def test_correlation_keys() -> None:
    """Rule and target, else Grafana's rule and folder, else the alert."""
    words = Words("grafana", "f", "Down", target="svc:demo/checkout")
    assert default_key(words) == "svc:demo/checkout|Down"
    assert default_key(Words("grafana", "f", "Down", labels={"grafana_folder": "Shop"})) == "grafana|Shop|Down"
    assert default_key(Words("generic", "f", "Down")) == "generic|f"
    assert len(default_key(replace(words, rule_name="r" * 600))) <= 512


@pytest.mark.parametrize(
    ("labels", "keys"),
    [
        ({"service": "s", "env": "Prod", "host": "h:1"}, ["svc:prod/s", "host:h"]),
        ({"service": "s"}, ["svc:s?"]),
        ({"namespace": "n", "deployment": "d", "cluster": "c", "service": "s"}, ["k8s:c/n/deployment/d", "svc:s?"]),
        ({"namespace": "n", "statefulset": "d"}, ["k8s:n/statefulset/d?"]),
        ({"namespace": "n", "pod": "web-5d4f8c7b9d-x2v4q", "cluster": "c"}, ["k8s:c/n/deployment/web?"]),
        ({"namespace": "n", "pod": "db-0", "cluster": "c"}, ["k8s:c/n/statefulset/db?"]),
        ({"namespace": "n", "pod": "lonely", "cluster": "c"}, ["k8s:c/n/pod/lonely"]),
        ({"resource_arn": "ARN:aws:X"}, ["cloud:arn:aws:x"]),
        ({"instance": "10.0.0.1:9100"}, ["host:10.0.0.1"]),
        ({"service.name": "s", "deployment.environment.name": "demo", "service": "other"}, ["svc:demo/s"]),
        ({"team": "shop", "job": "node"}, []),
    ],
)
def test_targets_come_from_labels(labels: dict[str, str], keys: list[str]) -> None:
    """Most specific first; `?` marks what is not enough for a lock."""
    assert [one.key + "?" * one.partial for one in target_keys(resource_of(labels))] == keys


def test_a_namespace_is_kubernetes_only_beside_kubernetes() -> None:
    """Alone it is the service's namespace."""
    assert resource_of({"namespace": "n"}) == {"service.namespace": "n"}
    assert resource_of({"namespace": "n", "pod": "p"})["k8s.namespace.name"] == "n"


@pytest.mark.parametrize(
    ("instance", "host"), [("a:9100", "a"), ("[::1]:9100", "::1"), ("fe80::1", "fe80::1"), ("a", "a"), ("a:b", "a:b")]
)
def test_hosts_without_ports(instance: str, host: str) -> None:
    """Only a port is taken off."""
    assert without_port(instance) == host


def closed(result: Result) -> Decided:
    """Return a finished decision."""
    return Decided(DecisionState.CLOSED, Outcome.TRIGGER_AUTOMATION, result, awaiting_approval=False, reason="r")


@pytest.mark.parametrize(
    ("result", "firing", "revision", "state", "revise"),
    [
        (Result.REPAIRED, True, 1, State.RESOLVED, False),
        (Result.RESPONDED, False, 2, State.RESOLVED, False),
        (Result.SUCCEEDED, True, 1, State.AWAITING_PERSON, False),
        (Result.SUCCEEDED, False, 1, State.OPEN, True),
        (Result.OBSERVED, True, 1, State.OBSERVED, False),
        (Result.STALE, True, 1, State.STALE, False),
        (Result.FAILED, True, 1, State.OPEN, True),
        (Result.CANCELLED, True, 4, State.OPEN, True),
        (Result.UNKNOWN, True, REVISIONS_MAX, State.AWAITING_PERSON, False),
        (Result.SUCCEEDED, False, REVISIONS_MAX, State.RESOLVED, False),
        (Result.SUPERSEDED, True, 2, State.RUNNING, False),
        (Result.ANSWERED, True, 1, State.OPEN, True),
        (Result.ANSWERED, True, REVISIONS_MAX, State.AWAITING_PERSON, False),
        (Result.REPORTED, True, 4, State.OPEN, True),
        (Result.ESCALATED, True, 4, State.OPEN, True),
        (Result.REPORTED, True, REVISIONS_MAX, State.AWAITING_PERSON, False),
        (Result.REPORTED, False, REVISIONS_MAX, State.RESOLVED, False),
    ],
)
def test_where_a_finished_decision_leads(
    *,
    result: Result,
    firing: bool,
    revision: int,
    state: State,
    revise: bool,
) -> None:
    """Each result has one consequence; failures are decided anew, at most five times."""
    step = follow(State.RUNNING, revision, closed(result), firing=firing)
    assert (step.state, step.revise, step.following) == (state, revise, False)


@pytest.mark.parametrize(
    ("result", "state", "revise"),
    [
        (Result.SUCCEEDED, State.RESOLVED, False),
        (Result.REPORTED, State.RESOLVED, False),
        (Result.OBSERVED, State.RESOLVED, False),
        (Result.RESPONDED, State.RESOLVED, False),
        (Result.REPAIRED, State.RESOLVED, False),
        (Result.FAILED, State.OPEN, True),
        (Result.ANSWERED, State.OPEN, True),
    ],
)
def test_a_wish_is_over_when_it_was_done(*, result: Result, state: State, revise: bool) -> None:
    """No alert will ever say that a wish of a chat is fulfilled; what failed or was answered goes on like any other."""
    step = follow(State.RUNNING, 1, closed(result), firing=True, asked=True)
    assert (step.state, step.revise, step.following) == (state, revise, False)


def test_where_an_open_decision_leads() -> None:
    """What waits, runs, or waits for an approval is followed."""
    one = Decided(
        DecisionState.DECIDED, Outcome.TRIGGER_AUTOMATION, Result.UNSPECIFIED, awaiting_approval=False, reason="r"
    )
    assert follow(State.OPEN, 1, one, firing=True).state is State.RUNNING
    assert follow(State.OPEN, 1, replace(one, awaiting_approval=True), firing=True).state is State.AWAITING_APPROVAL
    assert follow(State.OPEN, 1, replace(one, outcome=Outcome.ASK_HUMAN), firing=True).state is State.AWAITING_PERSON
    answer = replace(one, outcome=Outcome.RESPOND)
    assert follow(State.OPEN, 1, answer, firing=True).state is State.AWAITING_PERSON
    assert follow(State.OPEN, 1, answer, firing=True).following
    waits = replace(one, state=DecisionState.AWAITING_MODEL, outcome=Outcome.UNSPECIFIED)
    assert follow(State.OPEN, 1, waits, firing=True).state is State.AWAITING_MODEL
    assert follow(State.RESOLVED, 2, one, firing=True).state is State.RESOLVED


def test_the_router_is_asked_quickly_first_and_slowly_later() -> None:
    """Ten times in the first seconds, then up to a minute; while something acts every two seconds."""
    assert sum(poll_delay(State.AWAITING_MODEL, polls) for polls in range(4)) <= 1
    assert poll_delay(State.AWAITING_MODEL, 40) == 60
    assert poll_delay(State.RUNNING, 40) == 2
