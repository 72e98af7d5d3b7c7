"""Hours, days and dates by the wall clock of a zone, the change windows that rules name, and what a target affects."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from opsmesh.config.v1 import policies_pb2
from services.guardrails import convert, domain
from services.guardrails.domain import Access, Case, Entry, Match, PolicySet, Risk, Rule, Verdict
from services.guardrails.policies.windows import ChangeWindow, Window
from tests.guardrails.test_review import look
from tests.guardrails.world import inventory, rule

ALL = policies_pb2.EffectCap.SCOPE_ALL
BERLIN = "Europe/Berlin"
CASE = Case(method="a/B", access=Access.WRITE, risk=Risk.LOW, caller="human/operator", affected=("a", "b"))
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
OPEN = Window(frozenset(), time(0), time(0), "UTC")
SHUT = Window(frozenset(), time(13), time(14), "UTC")


def open_minutes(window: Window, day: date) -> int:
    """Return how many minutes of a day, by the zone's calendar, a window is open."""
    start = datetime.combine(day, time(0), ZoneInfo(window.zone)).astimezone(UTC)
    end = datetime.combine(day + timedelta(days=1), time(0), ZoneInfo(window.zone)).astimezone(UTC)
    minutes = int((end - start).total_seconds() // 60)
    return sum(window.contains(start + timedelta(minutes=minute)) for minute in range(minutes))


@pytest.mark.parametrize(
    ("day", "start", "end", "minutes"),
    [
        (date(2026, 3, 28), time(2), time(3), 60),
        # The hour from two to three does not exist.
        (date(2026, 3, 29), time(2), time(3), 0),
        (date(2026, 3, 29), time(1), time(4), 120),
        (date(2026, 3, 29), time(9), time(17), 480),
        # It comes twice.
        (date(2026, 10, 25), time(2), time(3), 120),
        (date(2026, 10, 25), time(0), time(0), 25 * 60),
        (date(2026, 3, 29), time(0), time(0), 23 * 60),
        (date(2026, 10, 26), time(2), time(3), 60),
    ],
)
def test_the_days_on_which_clocks_change(day: date, start: time, end: time, minutes: int) -> None:
    """A window is as long as the wall clock says: an hour less in spring, an hour more in autumn."""
    assert open_minutes(Window(frozenset(), start, end, BERLIN), day) == minutes


@pytest.mark.parametrize(
    ("zone", "hour"),
    [(BERLIN, 8), ("America/New_York", 14), ("Asia/Kolkata", 4), ("Australia/Lord_Howe", 22), ("UTC", 9)],
)
def test_the_same_hours_in_another_zone(zone: str, hour: int) -> None:
    """Nine o'clock is another instant in each zone; half hours included."""
    window = Window(frozenset(), time(9), time(10), zone)
    day = datetime(2026, 11, 21, tzinfo=UTC)
    inside = [minute for minute in range(24 * 60) if window.contains(day + timedelta(minutes=minute))]
    assert len(inside) == 60
    assert hour * 60 in inside


@pytest.mark.parametrize(
    ("when", "inside"),
    [
        (datetime(2026, 12, 23, 22, 59, tzinfo=UTC), False),
        (datetime(2026, 12, 23, 23, 0, tzinfo=UTC), True),
        (datetime(2027, 1, 2, 22, 59, tzinfo=UTC), True),
        (datetime(2027, 1, 2, 23, 0, tzinfo=UTC), False),
    ],
)
def test_first_and_last_day_are_those_of_the_zone(when: datetime, *, inside: bool) -> None:
    """A freeze from 24 December to 2 January begins and ends at midnight of its zone, both days included."""
    freeze = Window(frozenset(), time(0), time(0), BERLIN, date(2026, 12, 24), date(2027, 1, 2))
    assert freeze.contains(when) == inside


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    """The night of the last day goes on until its morning; the morning before the first day is no part of it."""
    night = Window(frozenset(), time(22), time(6), "UTC", date(2026, 11, 20), date(2026, 11, 21))
    hours = {
        (20, 3): False,
        (20, 23): True,
        (21, 3): True,
        (21, 12): False,
        (21, 23): True,
        (22, 3): True,
        (22, 23): False,
    }
    for (day, hour), inside in hours.items():
        assert night.contains(datetime(2026, 11, day, hour, tzinfo=UTC)) == inside


@pytest.mark.parametrize(
    ("match", "applies"),
    [
        (Match(during=(ChangeWindow("now", (OPEN,)),)), True),
        (Match(during=(ChangeWindow("later", (SHUT,)),)), False),
        (Match(during=(ChangeWindow("later", (SHUT,)), ChangeWindow("now", (SHUT, OPEN)))), True),
        (Match(outside=(ChangeWindow("now", (OPEN,)),)), False),
        (Match(outside=(ChangeWindow("later", (SHUT,)),)), True),
        (Match(outside=(ChangeWindow("later", (SHUT,)), ChangeWindow("now", (OPEN,)))), False),
        (Match(min_affected=2), True),
        (Match(min_affected=3), False),
    ],
)
def test_named_windows_and_blast_radius(match: Match, *, applies: bool) -> None:
    """During: in one of them; outside: in none of them; affected: at least so many."""
    assert match.applies(CASE, NOON) == applies


def test_a_window_that_is_not_there_is_an_error() -> None:
    """A rule that names an unknown window can neither allow nor deny: whoever judges by it must deny."""
    for match in (Match(during=(ChangeWindow("gone", ()),)), Match(outside=(ChangeWindow("gone", ()),))):
        with pytest.raises(ValueError, match="gone"):
            domain.rule_on(PolicySet(1, (Rule("r", Verdict.ALLOW, match),)), CASE, NOON)


def test_what_depends_on_a_target_is_affected() -> None:
    """Affected is the target and all that needs it, nearest first, whatever the length or loops of the chain."""
    entries = [
        Entry("db"),
        Entry("api", depends_on=("db",)),
        Entry("web", depends_on=("api", "cache")),
        Entry("cache", depends_on=("web",)),
        Entry("other"),
    ]
    known = PolicySet(entries=tuple(entries))
    assert known.affected("db") == ("db", "api", "web", "cache")
    assert known.affected("web") == ("web", "cache")
    assert known.affected("other") == ("other",)
    assert known.affected("unheard-of") == ("unheard-of",)
    assert known.affected("") == ()


def test_what_is_published_is_what_is_judged_by() -> None:
    """Change windows, caps and releases of the configuration reach the domain; what is left out has its default."""
    documents = policies_pb2.PolicySet(
        rules=[rule("r", "ALLOW", outside_change_windows=["freeze"], min_affected_targets=1)],
        change_windows=[window("freeze", first_date="2026-12-24", last_date="2027-01-02")],
        effect_caps=[policies_pb2.EffectCap(cap_id="c", scope=ALL, effects_per_hour=5, methods=["RestartWorkload"])],
        kill_release=policies_pb2.KillRelease(everything=3),
    )
    made = convert.to_policy_set(1, documents, inventory())
    (only,) = made.rules
    assert only.match.min_affected == 1
    assert only.match.outside[0].windows[0].first == date(2026, 12, 24)
    assert next(iter(made.effect_caps[0].methods)).endswith("WorkloadToolService/RestartWorkload")
    assert (made.kill_release, PolicySet().kill_release) == ((3, 1), (2, 1))


@pytest.mark.parametrize(
    ("rules", "more", "path"),
    [
        ({"during_change_windows": ["freeze", "gone"]}, {}, "rules[0].match.during_change_windows[1]"),
        ({"outside_change_windows": ["gone"]}, {}, "rules[0].match.outside_change_windows[0]"),
        (
            {"during_change_windows": ["freeze"], "outside_change_windows": ["freeze"]},
            {},
            "rules[0].match.outside_change_windows[0]",
        ),
        ({"min_affected_targets": 3}, {}, "rules[0].match.min_affected_targets"),
        ({}, {"change_windows": ["freeze", "freeze"]}, "change_windows[1].name"),
        ({}, {"zone": "Moon/Base"}, "change_windows[0].time_windows[0].zone"),
        ({}, {"first_date": "2026-02-30"}, "change_windows[0].time_windows[0].first_date"),
        ({}, {"first_date": "2026-02-02", "last_date": "2026-02-01"}, "change_windows[0].time_windows[0].last_date"),
        ({}, {"cap": {"methods": ["RestartWorklod"]}}, "effect_caps[0].methods[0]"),
        ({}, {"cap": {"environments": ["prod"]}}, "effect_caps[0].environments[0]"),
        ({}, {"cap": {"targets": ["svc:demo/chekout"]}}, "effect_caps[0].targets[0]"),
        ({}, {"cap": {"scope": "SCOPE_TARGET", "targets_per_hour": 2}}, "effect_caps[0].targets_per_hour"),
        ({}, {"caps": 2}, "effect_caps[1].cap_id"),
        ({}, {"kill_release": {"everything": 4}}, "kill_release.everything"),
    ],
)
def test_what_could_never_hold_is_not_published(rules: dict[str, Any], more: dict[str, Any], path: str) -> None:
    """Unknown names, days that do not exist, rules that never apply and kills nobody could release are named."""
    names = more.pop("change_windows", ["freeze"])
    given = dict(more)
    hours = {name: given.pop(name) for name in ("zone", "first_date", "last_date") if name in given}
    cap = {"cap_id": "c", "scope": "SCOPE_ALL", "effects_per_hour": 5} | given.pop("cap", {})
    found = look(
        [rule("r", "ALLOW", **rules)],
        change_windows=[window(name, **hours) for name in names],
        effect_caps=[cap] * given.pop("caps", 1),
        **given,
    )
    assert list(found) == [f"policy_set.{path}"]


def test_a_rule_behind_a_wider_one_never_decides() -> None:
    """A rule that a stronger one covers is named, with windows and blast radius taken into account."""
    narrow = {"during_change_windows": ["freeze"], "min_affected_targets": 2}
    strong = rule("strong", "DENY", during_change_windows=["freeze", "night"], min_affected_targets=1)
    windows = [window("freeze"), window("night")]
    weak = rule("weak", "ALLOW", **narrow)
    assert list(look([strong, weak], change_windows=windows)) == ["policy_set.rules[1].verdict"]
    outside = rule("strong", "DENY", outside_change_windows=["freeze"])
    assert look([outside, weak], change_windows=windows) == {}
    later = rule("strong", "DENY", during_change_windows=["night"])
    assert look([later, weak], change_windows=windows) == {}


def window(name: str, **hours: str) -> policies_pb2.ChangeWindow:
    """Return a change window."""
    given: dict[str, Any] = {"start": "00:00", "end": "00:00", "zone": BERLIN} | hours
    return policies_pb2.ChangeWindow(name=name, time_windows=[policies_pb2.TimeWindow(**given)])
