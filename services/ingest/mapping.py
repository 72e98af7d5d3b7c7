"""Between the IDL's messages and the plain data of the domain."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha1
from itertools import islice
from typing import Any, Final

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from opsmesh.config.v1 import inventory_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import signal_pb2
from opsmesh.router.v1 import decision_service_pb2
from opsmesh.type.v1 import type_pb2
from services.ingest.correlation import Correlation, Words
from services.ingest.decisions import Decided, DecisionState, Outcome, Result
from services.ingest.domain import Inventory, InventoryMatch, Resolved, SignalFacts, episode_of
from services.ingest.signal import (
    ERROR_TEXT_MAX,
    FIELD_MAX,
    WARNINGS_MAX,
    DeliveryFacts,
    FieldError,
    ParsedSignal,
    Signals,
    Status,
    TargetKey,
    Unreadable,
    bounded_key,
)
from services.ingest.sources import Parser
from services.ingest.sources.reading import PAIRS_MAX, clean

log = structlog.get_logger("opsmesh.ingest")
NANOS: Final = 1_000_000_000
# By how much the clock of a sender may be ahead of ours.
AHEAD: Final = 300 * NANOS
TIMES: Final = ("event_time", "start_time", "end_time")
TARGETS_MAX: Final = 32
SERVICE: Final = "svc:"
RESOURCE_MAX: Final = 64
# Statuses whose words describe what is wrong now.
DESCRIBING: Final = frozenset(
    {Status.UNSPECIFIED, Status.FIRING, Status.ACKNOWLEDGED, Status.NO_DATA, Status.OCCURRENCE}
)


def to_timestamp(nanos: int) -> Timestamp:
    """Return nanoseconds since 1970 as a Timestamp."""
    return Timestamp(seconds=nanos // NANOS, nanos=nanos % NANOS)


def signal_id_of(delivery_id: str, index: int) -> str:
    """Return the id of a signal: the same delivery again has the same signals."""
    return _named(delivery_id, str(index))


def _named(namespace: str, name: str) -> str:
    """Return uuid5 of a name as text: a third of what the library's objects cost, and each signal needs two."""
    found = sha1(bytes.fromhex(namespace.replace("-", "")) + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(found[16], 16) & 3]
    return f"{found[:8]}-{found[8:12]}-5{found[13:16]}-{variant}{found[17:20]}-{found[20:32]}"


def entry_of(delivery: pb.Delivery, parse: Parser) -> pb.StreamEntry:
    """Parse a delivery into what the stream keeps: its signals, or why it could not be understood."""
    delivery.content_type = clean(delivery.content_type)
    delivery.traceparent = clean(delivery.traceparent)
    entry = pb.StreamEntry(delivery=delivery)
    try:
        parsed = parse(delivery.body, DeliveryFacts(delivery.source, delivery.content_type, delivery.headers))
    except Unreadable as error:
        entry.errors.extend(_errors(error.errors))
        return entry
    received = delivery.receive_time.ToNanoseconds()
    for index, alert in enumerate(parsed):
        _add_signal(entry, received, index, alert)
    if isinstance(parsed, Signals):
        for one in parsed.left_out:
            entry.left_out.add(index=one.index, error=_errors([one.error])[0])
    return entry


def safe_entry_of(delivery: pb.Delivery, parse: Parser) -> pb.StreamEntry:
    """Return what `entry_of` does; where the parser itself fails, a delivery that was not understood.

    It stands among those of other senders, who must not pay for it, and would fail again each time it came. As a dead
    letter it is kept, and is redriven once the parser is mended.
    """
    try:
        return entry_of(delivery, parse)
    except Exception as error:  # noqa: BLE001  whatever a parser did not think of
        kind = type(error).__name__
        log.error("a parser failed", source=delivery.source, delivery=delivery.delivery_id, error=kind)  # noqa: TRY400  no traceback: it may show the body
        failed = pb.StreamEntry(delivery=delivery)
        failed.errors.add(description=f"the parser of this source failed ({kind})")
        return failed


def result_of(entry: pb.StreamEntry) -> pb.DeliveryResult:
    """Return the answer for an entry that is on disk; also what was not understood has the id of its row."""
    delivery_id = entry.delivery.delivery_id
    if entry.errors:
        return pb.DeliveryResult(
            delivery_id=delivery_id,
            state=pb.DeliveryResult.STATE_MALFORMED,
            signal_ids=[signal_id_of(delivery_id, 0)],
            errors=entry.errors,
        )
    ids = [signal.signal_id for signal in entry.signals]
    key = entry.signals[0].dedup_key if len(ids) == 1 else ""
    state = pb.DeliveryResult.STATE_ACCEPTED
    return pb.DeliveryResult(
        delivery_id=delivery_id, state=state, signal_ids=ids, dedup_key=key, left_out=entry.left_out
    )


def _errors(errors: Iterable[FieldError]) -> list[pb.DeliveryError]:
    return [
        pb.DeliveryError(field=clean(one.field)[:FIELD_MAX], description=clean(one.description)[:ERROR_TEXT_MAX])
        for one in errors
    ]


def _capped(parsed: ParsedSignal) -> ParsedSignal:
    """Return a signal whose maps the IDL can hold, however many names came together; that some are left out is said."""
    for name, most in (("resource", RESOURCE_MAX), ("labels", PAIRS_MAX), ("annotations", PAIRS_MAX)):
        pairs = getattr(parsed, name)
        if len(pairs) > most:
            said = (*parsed.warnings[: WARNINGS_MAX - 1], f"{name} has more than {most} entries")
            changes: dict[str, Any] = {name: dict(islice(pairs.items(), most)), "warnings": said}
            parsed = replace(parsed, **changes)
    return parsed


def _add_signal(entry: pb.StreamEntry, received: int, index: int, parsed: ParsedSignal) -> None:
    """Add a parsed signal as the IDL's message, made in its place: one that is made elsewhere is copied."""
    parsed = _capped(_not_ahead(parsed, received))
    delivery = entry.delivery
    entry.signals.add(
        signal_id=signal_id_of(delivery.delivery_id, index),
        delivery_id=delivery.delivery_id,
        index=index,
        source=delivery.source,
        event_time=to_timestamp(received if parsed.event_time is None else parsed.event_time),
        start_time=None if parsed.start_time is None else to_timestamp(parsed.start_time),
        end_time=None if parsed.end_time is None else to_timestamp(parsed.end_time),
        receive_time=delivery.receive_time,
        event_key=bounded_key(parsed.dedup_key, episode_of(parsed.start_time), parsed.status.name),
        dedup_key=parsed.dedup_key,
        group_key=parsed.group_key,
        status=signal_pb2.Signal.Status.ValueType(parsed.status),
        status_raw=parsed.status_raw,
        severity=signal_pb2.Signal.Severity.ValueType(parsed.severity),
        severity_raw=parsed.severity_raw,
        summary=parsed.summary,
        description=parsed.description,
        rule_name=parsed.rule_name,
        resource=parsed.resource,
        targets=[signal_pb2.TargetKey(kind=one.kind, key=one.key, partial=one.partial) for one in parsed.targets],
        labels=parsed.labels,
        annotations=parsed.annotations,
        links=[signal_pb2.Link(rel=signal_pb2.Link.Rel.ValueType(one.rel), url=one.url) for one in parsed.links],
        warnings=parsed.warnings,
        test=parsed.test,
        body_pointer=parsed.body_pointer,
        kind=signal_pb2.Signal.Kind.ValueType(parsed.kind),
    )


def _not_ahead(parsed: ParsedSignal, received: int) -> ParsedSignal:
    """Return a signal without times that are yet to come: one such start would make all that follows look older."""
    ahead = [name for name in TIMES if (getattr(parsed, name) or 0) > received + AHEAD]
    if not ahead:
        return parsed
    warning = f"ahead of our clock, and so not used: {', '.join(ahead)}"
    nothing: dict[str, Any] = dict.fromkeys(ahead)
    return replace(parsed, warnings=(*parsed.warnings[: WARNINGS_MAX - 1], warning), **nothing)


def inventory_of(message: inventory_pb2.Inventory, version: int) -> Inventory:
    """Return an inventory as a lookup."""
    entries = ((InventoryMatch(one.target_id, one.environment, one.region), one.keys) for one in message.entries)
    return Inventory(entries, version)


def targets_of(signal: signal_pb2.Signal, inventory: Inventory) -> list[Resolved]:
    """Return the targets of a signal, looked up in the inventory."""
    return inventory.resolve(TargetKey(one.kind, one.key, one.partial) for one in signal.targets)


def words_of(signal: signal_pb2.Signal, targets: Sequence[Resolved]) -> Words:
    """Return what correlation looks at: where the inventory knows no target, a service rather than one of its pods."""
    known = (one for one in targets if one.match or one.target_id.startswith(SERVICE))
    first = next(known, targets[0] if targets else None)
    match = first.match if first else None
    severity = signal_pb2.Signal.Severity.Name(signal.severity).removeprefix("SEVERITY_").lower()
    return Words(
        source=signal.source,
        dedup_key=signal.dedup_key,
        rule_name=signal.rule_name,
        title=signal.summary,
        severity=severity if signal.severity else "unknown",
        target=first.target_id if first else "",
        environment=match.environment if match else "",
        region=match.region if match else "",
        labels=signal.labels,
        resource=signal.resource,
    )


def facts_of(signal: signal_pb2.Signal, targets: Sequence[Resolved], correlation: Correlation) -> SignalFacts:
    """Return what deduplication needs to know of a signal."""
    correlated = correlation.of(words_of(signal, targets))
    over = Status(signal.status) is Status.RESOLVED
    return SignalFacts(
        signal_id=signal.signal_id,
        source=signal.source,
        dedup_key=signal.dedup_key,
        status=Status(signal.status),
        event_time=signal.event_time.ToNanoseconds(),
        start_time=signal.start_time.ToNanoseconds() if signal.HasField("start_time") else None,
        correlation_key=correlated.key,
        incident_id=_named(signal.signal_id, "incident"),
        test=signal.test,
        change=signal.kind != signal_pb2.Signal.KIND_UNSPECIFIED,
        timed=signal.event_time != signal.receive_time,
        end_time=signal.end_time.ToNanoseconds() if over and signal.HasField("end_time") else None,
        grouping=correlated.grouping,
        correlation_rule_id=correlated.rule_id,
    )


def absorb(incident: pb.Incident, signal: signal_pb2.Signal, targets: Sequence[Resolved]) -> None:
    """Let a signal describe its incident: the newest words, the worst severity, every target."""
    if not incident.source:
        incident.source, incident.title, incident.rule_name = signal.source, signal.summary, signal.rule_name
    incident.status = signal.status
    incident.severity = max(incident.severity, signal.severity)
    if Status(signal.status) not in DESCRIBING:
        return
    for field in ("labels", "resource", "description", "links"):
        incident.ClearField(field)
    incident.labels.update(signal.labels)
    incident.resource.update(signal.resource)
    incident.description = signal.description
    incident.links.extend(signal.links)
    known = {one.target_id: one for one in (*incident.targets, *map(_target, targets))}
    raw_of_known = {one.raw_key for one in known.values() if one.in_inventory}
    merged = [one for one in known.values() if one.in_inventory or one.raw_key not in raw_of_known]
    merged.sort(key=lambda one: not one.in_inventory)
    incident.ClearField("targets")
    incident.targets.extend(merged[:TARGETS_MAX])


def relocate(incident: pb.Incident, inventory: Inventory) -> bool:
    """Look the raw keys of an incident's unknown targets up again; say whether one is known now."""
    unknown = [one for one in incident.targets if not one.in_inventory]
    found = {key.raw_key: key for key in inventory.resolve(TargetKey("", one.raw_key, False) for one in unknown)}
    known = {raw_key: one for raw_key, one in found.items() if one.match}
    if not known:
        return False
    targets = [_target(known[one.raw_key]) if one.raw_key in known else one for one in incident.targets]
    unique = {one.target_id: one for one in reversed(targets)}
    kept = sorted(unique.values(), key=lambda one: not one.in_inventory)
    incident.ClearField("targets")
    incident.targets.extend(kept)
    return True


def _target(resolved: Resolved) -> type_pb2.Target:
    match = resolved.match
    return type_pb2.Target(
        target_id=resolved.target_id,
        environment=match.environment if match else "",
        region=match.region if match else "",
        in_inventory=match is not None,
        raw_key=resolved.raw_key,
    )


def decided_of(decision: decision_service_pb2.Decision) -> Decided:
    """Return what a decision says, as far as incidents care."""
    return Decided(
        state=DecisionState(decision.state),
        outcome=Outcome(decision.outcome),
        result=Result(decision.result),
        awaiting_approval=decision.awaiting_approval,
        reason=decision.reason[:512],
        held=decision.held,
    )
