"""Which alerts are one incident: rules, their limits, what opens again, and what flaps."""

import asyncio
import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from opsmesh.config.v1 import correlation_pb2
from services.ingest.book import Book
from services.ingest.correlating import correlation_of, load_correlation
from services.ingest.correlation import Calm, Correlation, Grouping, Rule, Words, default_key, problems, signature
from services.ingest.domain import REVISIONS_MAX, Disposition, Inventory, State, Tally
from services.ingest.mapping import targets_of, words_of
from services.ingest.signal import Status
from services.ingest.store import PostgresIncidents
from services.mesh.config import ConfigError, load_yaml
from services.mesh.errors import BootError
from tests.ingest.house import House, alert, entry, notification
from tests.ingest.test_domain import NOW, book, facts, judged

ROOT = Path(__file__).resolve().parents[2]
WORDS = Words("alertmanager", "f1", "Down", title="Down on web-1", target="host:web-1", labels={"team": "shop"})
TEAM = Rule("team", ("labels.team", "rule"), {"source": "alertmanager"})
MINUTES = timedelta(minutes=5)


def test_a_rule_joins_what_has_the_same_values() -> None:
    """Other targets, the same team and rule: one key; another rule or team: another; a missing field: the default."""
    rules = Correlation((TEAM,))
    key = rules.of(WORDS).key
    assert rules.of(replace(WORDS, target="host:web-2", dedup_key="f2")).key == key
    assert rules.of(replace(WORDS, rule_name="Slow")).key != key
    assert rules.of(replace(WORDS, labels={})) == Correlation().of(replace(WORDS, labels={}))
    assert rules.of(replace(WORDS, source="grafana")).key == default_key(WORDS)


def test_the_first_rule_that_applies_decides() -> None:
    """Order is that of the file, and two rules never share a key."""
    other = replace(TEAM, rule_id="other", grouping=Grouping(max_alerts=5))
    assert Correlation((TEAM, other)).of(WORDS).rule_id == "team"
    assert Correlation((other, TEAM)).of(WORDS).grouping.max_alerts == 5
    assert Correlation((other,)).of(WORDS).key != Correlation((TEAM,)).of(WORDS).key


@pytest.mark.parametrize(("left", "right"), [(("a|b", "c"), ("a", "b|c")), (("a|b", "c"), ("a", "b"))])
def test_no_value_passes_for_two(left: tuple[str, str], right: tuple[str, str]) -> None:
    """Whoever writes a label cannot build the key of other values, nor one that no rule made."""
    rules = Correlation((TEAM,))
    one, other = (rules.of(replace(WORDS, labels={"team": team}, rule_name=rule)).key for team, rule in (left, right))
    assert one != other
    assert default_key(replace(WORDS, target="svc:x", rule_name="=team|a|b")).startswith("svc:")


def test_a_signature_is_without_what_differs() -> None:
    """Words with digits, case and spaces say nothing about the cause; the sender's rule does, as it is."""
    assert signature("Disk /dev/sda1 on  web-12 at 93.5%") == signature("disk /dev/sdb2 on web-7 at 94%")
    assert signature("Disk full") != signature("Disk slow")
    rules = Correlation((Rule("s", ("signature",)),))
    assert rules.of(replace(WORDS, rule_name="Http5xx")).key != rules.of(replace(WORDS, rule_name="Http4xx")).key


def key_of(**labels: str) -> str:
    """Return the key of an alert with these labels, of which no inventory knows anything."""
    one = alert() | {"labels": {"alertname": "Down"} | labels, "fingerprint": uuid.uuid4().hex}
    (signal,) = entry(notification(one)).signals
    return Correlation().of(words_of(signal, targets_of(signal, Inventory([], 0)))).key


def test_a_thousand_pods_of_a_service_are_one_trouble() -> None:
    """Who names a service means it, whichever pod, host or scrape tells of it; elsewhere it is another service."""
    place = {"service": "payments", "namespace": "shop"}
    keys = {key_of(**place, pod=f"payments-{n}", instance=f"10.0.0.{n}:80") for n in range(3)}
    assert keys == {"svc:payments|Down|namespace=shop"}
    assert key_of(**place | {"namespace": "bank"}) not in keys
    assert key_of(**place, env="prod", pod="x") == "svc:prod/payments|Down"


def test_alerts_that_name_nothing_are_joined_by_their_rule_and_place() -> None:
    """Whatever else their labels say; hosts stay for themselves, for each may need its own repair."""
    assert key_of(shard="1", cluster="c1") == key_of(shard="2", cluster="c1") == "alertmanager|Down|cluster=c1"
    assert key_of(shard="1", cluster="c2") != key_of(shard="1", cluster="c1")
    assert key_of(instance="a:9100", job="node") != key_of(instance="b:9100", job="node")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule("a", ("pod",)), "pod is no field"),
        (Rule("a", ("labels.",)), "labels. is no field"),
        (Rule("a", ("source", "region")), "joins alerts of everything"),
        (Rule("a", ("rule",), {"severity": "high"}), "high is no severity"),
        (Rule("a", ("rule",), {"name": "x"}), "name is no field"),
    ],
)
def test_what_rules_may_not_say(rule: Rule, said: str) -> None:
    """Each mistake has its place and says what there is."""
    assert [said in description for _, description in problems([rule])] == [True]
    assert problems([TEAM, TEAM]) == [("rules[1].rule_id", "team is the id of rules[0], too")]


def test_the_file_is_read_and_a_wrong_one_refuses_the_start(tmp_path: Path) -> None:
    """The shipped file changes nothing; without one there are no rules; a mistake is told with its place."""
    assert load_correlation(ROOT / "deploy") == Correlation() == load_correlation(tmp_path)
    path = tmp_path / "correlation.yaml"
    path.write_text("rules:\n  - {rule_id: a, by: [labels.team, rule], grouping: {debounce_duration: 5s}}\n")
    found = correlation_of(load_yaml(path, correlation_pb2.Correlation))
    assert found.rules == (Rule("a", ("labels.team", "rule"), {}, Grouping(debounce=timedelta(seconds=5))),)
    path.write_text("rules:\n  - {rule_id: a, by: [pod]}\n")
    with pytest.raises(BootError, match=r"rules\[0\].by\[0\]: pod is no field.*NEXT"):
        load_correlation(tmp_path)
    path.write_text("rules:\n  - {rule_id: a, by: []}\n")
    with pytest.raises(ConfigError):
        load_correlation(tmp_path)


def test_a_full_incident_takes_nothing_new() -> None:
    """With its alerts it is sealed and the next opens another; its own resolves and copies still find it."""
    grouping = Grouping(max_alerts=2)
    one = book()
    told = [replace(facts(key=key, where="k"), grouping=grouping) for key in "abcd"]
    assert judged(one, *told) == [Disposition.OPENED, Disposition.JOINED, Disposition.OPENED, Disposition.JOINED]
    first, second = one.incidents.values()
    assert (first.sealed, second.sealed) == (True, False)
    judged(one, told[0], facts(Status.RESOLVED, 200, key="b", where="k"))
    assert (first.duplicates, first.active, second.active) == (1, 1, 2)


def test_an_old_incident_takes_nothing_new() -> None:
    """An incident that is older than its rule allows is sealed."""
    one = book()
    signal = replace(facts(where="k"), grouping=Grouping(max_age=MINUTES))
    judged(one, signal)
    one.now += timedelta(minutes=4)
    assert judged(one, replace(signal, dedup_key="b")) == [Disposition.JOINED]
    one.now += timedelta(minutes=2)
    assert judged(one, replace(signal, dedup_key="c", incident_id="i2")) == [Disposition.OPENED]


@pytest.mark.parametrize(
    ("ago", "revision", "state", "opens"),
    [
        (timedelta(minutes=4), 2, State.RESOLVED, True),
        (timedelta(minutes=6), 2, State.RESOLVED, False),
        (timedelta(minutes=4), REVISIONS_MAX, State.RESOLVED, False),
        (timedelta(minutes=4), 2, State.STALE, False),
    ],
)
def test_a_resolved_incident_opens_again_when_its_rule_wants_it(
    *, ago: timedelta, revision: int, state: State, opens: bool
) -> None:
    """Soon enough after the resolve, while it has revisions left; otherwise another incident opens."""
    one = Book(NOW, timedelta(hours=1))
    one.load([], [Tally("old", "k", state, revision=revision, decided=True, resolve_time=NOW - ago)])
    signal = replace(facts(at=300, start=300, where="k"), grouping=Grouping(reopen=MINUTES))
    assert judged(one, signal) == [Disposition.JOINED if opens else Disposition.OPENED]
    assert one.incidents["old"].reopened is opens


def ruled(house: House, *rules: Rule) -> None:
    """Give a house rules."""
    house.store = PostgresIncidents(house.pool, Calm(timedelta(hours=1), timedelta(), Correlation(rules)))


async def test_rules_hold_in_the_store(house: House) -> None:
    """Joined over targets by label, sealed when full, with the rule's own debounce."""
    grouping = Grouping(debounce=timedelta(seconds=90), max_alerts=3)
    ruled(house, Rule("cluster", ("resource.k8s.cluster.name", "rule"), grouping=grouping))
    for number in range(4):
        one = alert("Unreachable", service=f"s{number}", cluster="c1", namespace="n")
        await house.take(entry(notification(one)))
    rows = await house.rows(
        "SELECT alert_count, sealed, correlation_rule_id, due_time - open_time AS wait FROM incidents ORDER BY sealed"
    )
    assert [tuple(row) for row in rows] == [
        (1, False, "cluster", timedelta(seconds=90)),
        (3, True, "cluster", timedelta(seconds=90)),
    ]


async def test_a_reopened_incident_is_decided_anew(house: House) -> None:
    """The same incident, the next revision."""
    ruled(house, Rule("again", ("rule", "target"), grouping=Grouping(reopen=timedelta(hours=1))))
    await house.take(entry(notification(alert())))
    for minute in (1, 2):
        await house.pool.execute("UPDATE alerts SET over = true")
        await house.pool.execute(
            "UPDATE incidents SET state = 'RESOLVED', resolve_time = now(), needs_decision = false, firing = false"
        )
        await house.take(entry(notification(alert(start=f"2026-03-01T11:{minute:02}:00Z"))))
    rows = await house.rows("SELECT state, revision, needs_decision, resolve_time, state_detail FROM incidents")
    assert [tuple(row)[:4] for row in rows] == [("OPEN", 3, True, None)]
    assert "opened again" in rows[0]["state_detail"]


async def test_of_many_resolved_incidents_of_a_key_only_the_newest_opens_again(house: House) -> None:
    """A hundred of them are neither loaded nor locked for the next alert."""
    ruled(house, Rule("again", ("rule", "target"), grouping=Grouping(reopen=timedelta(hours=1))))
    await house.take(entry(notification(alert())))
    await house.pool.execute("UPDATE alerts SET over = true")
    await house.pool.execute(
        "UPDATE incidents SET state = 'RESOLVED', resolve_time = now(), needs_decision = false, firing = false"
    )
    await house.pool.execute(
        "INSERT INTO incidents (incident_id, state, source, title, severity, correlation_key, firing, snapshot, "
        "needs_decision, resolve_time) SELECT gen_random_uuid(), 'RESOLVED', source, title, severity, "
        "correlation_key, false, snapshot, false, now() - make_interval(mins => number) "
        "FROM incidents, generate_series(1, 100) AS number"
    )
    async with house.pool.acquire() as connection, connection.transaction():
        oldest = await connection.fetchval("SELECT min(resolve_time) FROM incidents")
        await connection.execute("SELECT FROM incidents WHERE resolve_time = $1 FOR UPDATE", oldest)
        await asyncio.wait_for(house.take(entry(notification(alert(start="2026-03-01T11:00:00Z")))), 20)
    rows = await house.rows("SELECT revision FROM incidents WHERE state = 'OPEN'")
    assert [row["revision"] for row in rows] == [2]
