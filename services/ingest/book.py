"""Deduplication, correlation and the life of an incident: what becomes of one signal after the other. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from services.ingest.correlation import Grouping
from services.ingest.domain import (
    ACTING,
    CLOSED,
    REVISIONS_MAX,
    WAITING,
    Alert,
    Disposition,
    SignalFacts,
    State,
    Tally,
    episode_of,
)
from services.ingest.flapping import Turns, turned
from services.ingest.signal import Status

# So long a resolve without a firing waits for the firing that it has overtaken.
HOLD: Final = timedelta(minutes=5)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def moment(nanos: int) -> datetime:
    """Return nanoseconds since 1970 as PostgreSQL's microseconds."""
    return EPOCH + timedelta(microseconds=nanos // 1000)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one signal, and whether its words become the incident's."""

    disposition: Disposition
    incident_id: str | None = None
    speaks: bool = False


@dataclass(slots=True)
class Book:
    """The alerts and incidents that a batch of signals touches, as they are in the store; `judge` writes on in it."""

    now: datetime
    window: timedelta
    # How long an incident gathers whose rule does not say so.
    debounce: timedelta = timedelta()
    alerts: dict[tuple[str, str, str], Alert] = field(default_factory=dict)
    incidents: dict[str, Tally] = field(default_factory=dict)
    changed: set[tuple[str, str, str]] = field(default_factory=set)
    changes: set[tuple[str, str]] = field(default_factory=set)
    turns: dict[tuple[str, str], Turns] = field(default_factory=dict)
    turned: set[tuple[str, str]] = field(default_factory=set)
    _latest: dict[tuple[str, str], tuple[str, str, str]] = field(default_factory=dict)
    _open: dict[str, str] = field(default_factory=dict)
    _resolved: dict[str, str] = field(default_factory=dict)

    def load(self, alerts: Iterable[Alert], incidents: Iterable[Tally]) -> None:
        """Take what the store knows."""
        for alert in alerts:
            self.alerts[alert.key] = alert
            self._note_latest(alert)
        for incident in incidents:
            self.incidents[incident.incident_id] = incident
            if incident.state not in CLOSED and not incident.sealed:
                self._open[incident.correlation_key] = incident.incident_id
            elif incident.state is State.RESOLVED and incident.resolve_time:
                other = self.incidents.get(self._resolved.get(incident.correlation_key, ""))
                if not (other and other.resolve_time and other.resolve_time > incident.resolve_time):
                    self._resolved[incident.correlation_key] = incident.incident_id

    def judge(self, signal: SignalFacts) -> Verdict:
        """Say what becomes of a signal. The same (alert, start, status) again is a duplicate, whatever came since."""
        if signal.test or signal.change:
            return Verdict(Disposition.TEST) if signal.test else self._changed(signal)
        verdict = self._judge(signal)
        self._keep_until(signal)
        return verdict

    def _keep_until(self, signal: SignalFacts) -> None:
        """Say when an alert is over unless told again: an occurrence has no resolve; any other word waits for one."""
        if signal.status in (Status.RESOLVED, Status.SUPPRESSED):
            return
        told_time, expire_time = None, None
        if signal.status is Status.OCCURRENCE:
            told_time = self.now
            expire_time = self.now + signal.grouping.occurrence if signal.grouping.occurrence else None
        keys = {(*signal.alert, episode_of(signal.start_time)), self._latest.get(signal.alert, ("", "", ""))}
        for one in [self.alerts[key] for key in keys if key in self.alerts]:
            # What was told late is no word on what came since, but an occurrence goes on however its events overtake.
            newest = signal.event_time >= one.event_time or (told_time and one.told_time)
            if newest and not one.over and (told_time or one.told_time):
                event_time = max(one.event_time, signal.event_time)
                self._put(replace(one, event_time=event_time, told_time=told_time, expire_time=expire_time))

    def _judge(self, signal: SignalFacts) -> Verdict:
        """Say what becomes of word of an alert."""
        self._end_overlapped(signal)
        known = self.alerts.get((*signal.alert, episode_of(signal.start_time)))
        if known and not self._is_afresh(known, signal):
            return self._again(known, signal)
        latest = self.alerts.get(self._latest.get(signal.alert, ("", "", "")))
        if latest is known:
            latest = None
        if latest and (before := self._of_before(signal, latest)):
            return before
        if signal.status is Status.SUPPRESSED:
            found = latest or known
            return self._joined(Disposition.SUPPRESSED, found.incident_id if found and not found.over else None)
        if signal.status is Status.RESOLVED:
            return self._resolved_unseen(signal, latest)
        replaced = [one for one in (latest, known) if one and not one.over]
        for one in replaced:
            # The sender has begun anew without saying that the last one was over.
            self._put(replace(one, over=True))
        over = next((one for one in (latest, known) if one and one.over and one.incident_id), None)
        return self._begin(signal, over, {one.incident_id for one in replaced})

    def _of_before(self, signal: SignalFacts, latest: Alert) -> Verdict | None:
        """Judge what is of the newest firing that is known, or of an older one; None for what is news."""
        if _is_within(signal, latest):
            return self._again(latest, signal)
        return self._joined(Disposition.STALE, latest.incident_id) if _is_older(signal, latest) else None

    def _end_overlapped(self, signal: SignalFacts) -> None:
        """End a firing that began while another, that is over now, went on: both are one, told by two peers.

        No alert begins anew before it was over, but peers of a pair may differ by seconds in when it began, and agree
        on the earlier time before they tell the end.
        """
        latest = self.alerts.get(self._latest.get(signal.alert, ("", "", "")))
        if latest is None or latest.over or None in (latest.start_time, signal.start_time, signal.end_time):
            return
        if (signal.start_time or 0) < (latest.start_time or 0) < (signal.end_time or 0):
            self._put(replace(latest, over=True, end_time=signal.end_time))
            self._turn(signal, self.incidents.get(latest.incident_id or ""), signal.event_time)
            self._revise(latest.incident_id)

    def _changed(self, signal: SignalFacts) -> Verdict:
        """Judge word of a change: it is kept once and touches no incident."""
        if signal.alert in self.changes:
            return Verdict(Disposition.DUPLICATE)
        self.changes.add(signal.alert)
        return Verdict(Disposition.CHANGE)

    def _is_afresh(self, known: Alert, signal: SignalFacts) -> bool:
        """Say whether a signal without a start, or of an occurrence that is over, begins a new episode."""
        if signal.status in (Status.RESOLVED, Status.SUPPRESSED):
            return False
        if signal.start_time is not None and not known.is_lapsed:
            return False
        if known.over and (signal.timed or known.is_lapsed):
            return signal.event_time > known.event_time
        if known.over and known.incident_id is None:
            # Its firing may be late, and no time of the sender tells it from the next one.
            return self.now - known.first_seen > HOLD
        if known.over and signal.event_time > known.event_time:
            return True
        return self.now - known.first_seen > self.window

    def _again(self, known: Alert, signal: SignalFacts) -> Verdict:
        """Judge a further signal of a known episode."""
        # Without a start one row stands for all episodes: then only the sender's time says which word is the last.
        ordered = signal.start_time is None and signal.timed
        older = ordered and signal.event_time < known.event_time
        if known.seen & (1 << signal.status):
            if ordered and not older and known.over is (signal.status is Status.RESOLVED):
                self._put(replace(known, event_time=signal.event_time))
            return self._joined(Disposition.DUPLICATE, known.incident_id)
        if signal.status is Status.SUPPRESSED:
            return self._joined(Disposition.SUPPRESSED, known.incident_id)
        resolved = signal.status is Status.RESOLVED
        if resolved and older:
            return self._joined(Disposition.STALE, known.incident_id)
        if not resolved and (known.over or signal.event_time < known.event_time):
            self._put(replace(known, seen=known.seen | 1 << signal.status))
            return self._joined(Disposition.STALE, known.incident_id)
        event_time = max(known.event_time, signal.event_time)
        seen = known.seen | 1 << signal.status
        end_time = signal.end_time if known.end_time is None else known.end_time
        self._put(replace(known, seen=seen, over=known.over or resolved, event_time=event_time, end_time=end_time))
        if resolved and not known.over:
            self._turn(signal, self.incidents.get(known.incident_id or ""), signal.event_time)
        self._revise(known.incident_id)
        return self._joined(Disposition.JOINED, known.incident_id, speaks=True)

    def _resolved_unseen(self, signal: SignalFacts, latest: Alert | None) -> Verdict:
        """Judge a resolve whose firing is not known: it ends the last episode, or waits for a firing that is late."""
        incident_id = latest.incident_id if latest and not latest.over else None
        self._put(_alert_of(signal, incident_id, self.now, over=True))
        if latest is None or latest.over:
            return Verdict(Disposition.STALE)
        event_time = max(latest.event_time, signal.event_time)
        self._put(replace(latest, over=True, event_time=event_time, end_time=signal.end_time))
        self._turn(signal, self.incidents.get(incident_id or ""), signal.event_time)
        self._revise(incident_id)
        return self._joined(Disposition.JOINED, incident_id, speaks=True)

    def _begin(self, signal: SignalFacts, over: Alert | None, fired: Collection[str | None]) -> Verdict:
        """Join the open incident of the same correlation key, open a resolved one again, or open one.

        An incident of which every alert is over takes nothing new, whether the router has closed it yet or not: it
        ends, and what works on it goes on. Only its debounce, its rule for opening again and flapping hold it open;
        and one of `fired`, whose alert has never been told to be over.
        """
        incident_id = self._open_for(signal, fired) or self._reopened(signal)
        opened = incident_id is None
        if incident_id is None:
            incident_id = signal.incident_id
            self.incidents[incident_id] = Tally(
                incident_id,
                signal.correlation_key,
                State.OPEN,
                opened=True,
                open_time=self.now,
                gathers=self.debounce_of(signal.grouping) > timedelta(),
                grouping=signal.grouping,
                correlation_rule_id=signal.correlation_rule_id,
            )
            self._open[signal.correlation_key] = incident_id
        self._put(_alert_of(signal, incident_id, self.now, over=False))
        incident = self.incidents[incident_id]
        incident.alerts += 1
        incident.new_alerts += 1
        if over:
            self._turn(signal, incident, over.event_time, signal.event_time)
        return self._joined(Disposition.OPENED if opened else Disposition.JOINED, incident_id, speaks=True)

    def debounce_of(self, grouping: Grouping) -> timedelta:
        """Return how long an incident of such a rule gathers before it is decided."""
        return self.debounce if grouping.debounce is None else grouping.debounce

    def _open_for(self, signal: SignalFacts, fired: Collection[str | None]) -> str | None:
        """Return the open incident that takes a new firing; one that was only observed, is full or over, does not."""
        incident_id = self._open.get(signal.correlation_key)
        if incident_id is None:
            return None
        found = self.incidents[incident_id]
        goes_on = found.active or found.flapping or found.gathers or incident_id in fired
        again = not goes_on and bool(signal.grouping.reopen) and found.revision < REVISIONS_MAX
        found.replaced = found.state is State.OBSERVED and not found.active and not found.flapping
        found.sealed = not found.replaced and (not (goes_on or again) or found.is_full(signal.grouping, self.now))
        if found.replaced or found.sealed:
            del self._open[signal.correlation_key]
            return None
        # The router may have answered already that it is over: that was about a revision that is past now.
        found.reopened |= again and found.state not in WAITING
        return incident_id

    def _reopened(self, signal: SignalFacts) -> str | None:
        """Open the incident that was resolved last again, if its rule wants it; it is decided anew."""
        found = self.incidents.get(self._resolved.pop(signal.correlation_key, ""))
        if found is None or not found.resolve_time or self.now - found.resolve_time > signal.grouping.reopen:
            return None
        if found.revision >= REVISIONS_MAX or found.sealed or found.is_full(signal.grouping, self.now):
            return None
        found.state, found.reopened = State.OPEN, True
        self._open[signal.correlation_key] = found.incident_id
        return found.incident_id

    def _turn(self, signal: SignalFacts, incident: Tally | None, *times: int) -> None:
        """Note when an alert changed its state, by its sender's clock; too often, and its incident flaps.

        An alert that is over for the first time changed nothing yet that could be flapping: it is noted with the next.
        """
        if incident is None or (len(times) == 1 and signal.alert not in self.turns):
            return
        flapping = signal.grouping.flapping
        known = self.turns.get(signal.alert, Turns())
        self.turns[signal.alert] = turns = turned(known, (min(self.now, moment(one)) for one in times), flapping)
        self.turned.add(signal.alert)
        if turns.flap(flapping):
            incident.flaps_now |= not incident.flapping
            incident.flapping = True
        if incident.flapping:
            incident.calm_time = self.now + flapping.calm

    def _joined(self, disposition: Disposition, incident_id: str | None, *, speaks: bool = False) -> Verdict:
        """Count the signal at its incident."""
        if incident_id and (incident := self.incidents.get(incident_id)):
            incident.signals += 1
            incident.duplicates += disposition is Disposition.DUPLICATE
        return Verdict(disposition, incident_id, speaks)

    def _put(self, alert: Alert) -> None:
        """Write an alert and keep count of how many of its incident's alerts are not over."""
        before = self.alerts.get(alert.key)
        for one, step in ((before, -1), (alert, 1)):
            if one and not one.over and one.incident_id in self.incidents:
                self.incidents[one.incident_id].active += step
        self.alerts[alert.key] = alert
        self.changed.add(alert.key)
        self._note_latest(alert)

    def _note_latest(self, alert: Alert) -> None:
        """Remember the newest episode of each alert."""
        whose = (alert.source, alert.dedup_key)
        known = self.alerts.get(self._latest.get(whose, ("", "", "")))
        if known is None or (alert.start_time or 0) >= (known.start_time or 0):
            self._latest[whose] = alert.key

    def _revise(self, incident_id: str | None) -> None:
        """Have an incident decided anew when its last alert is over, nothing acts on it and it does not flap."""
        incident = self.incidents.get(incident_id or "")
        if incident is None or incident.flapping or incident.active or not incident.decided:
            return
        incident.revised |= incident.state not in CLOSED | ACTING


def _is_within(signal: SignalFacts, latest: Alert) -> bool:
    """Say whether a signal is of a firing that began before the newest one was over, so that both are one."""
    if signal.start_time is None or latest.start_time is None or latest.end_time is None:
        return False
    return latest.start_time <= signal.start_time < latest.end_time


def _is_older(signal: SignalFacts, latest: Alert) -> bool:
    """Say whether a signal is of a time before the newest episode of its alert, or before the resolve that ended it."""
    if signal.start_time and latest.start_time and not (latest.is_lapsed and signal.status is not Status.RESOLVED):
        return signal.start_time < latest.start_time
    return latest.over and signal.status is not Status.RESOLVED and signal.event_time <= latest.event_time


def _alert_of(signal: SignalFacts, incident_id: str | None, now: datetime, *, over: bool) -> Alert:
    return Alert(
        source=signal.source,
        dedup_key=signal.dedup_key,
        start_time=signal.start_time,
        incident_id=incident_id,
        seen=1 << signal.status,
        over=over,
        event_time=signal.event_time,
        first_seen=now,
        end_time=signal.end_time,
    )
