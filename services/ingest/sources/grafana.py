"""Grafana's webhook: unified alerting (a superset of Alertmanager's), and the shape of version 8 and older."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from services.ingest.resources import resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    KEY_MAX,
    RAW_MAX,
    RULE_MAX,
    SUMMARY_MAX,
    DeliveryFacts,
    ParsedSignal,
    Rel,
    Status,
    bounded_key,
    unreadable,
)
from services.ingest.sources.alerts import NAME_LABEL, read_alerts, severity_in
from services.ingest.sources.fields import items_of, labels_of, links_of, object_of, severity_of, tags_of
from services.ingest.sources.reading import PAIRS_MAX, Notes, bounded, read_json, text_of, word_of, words_of
from services.ingest.words import read_status

FOLDER: Final = "grafana_folder"
# Trouble of the data source comes as another alert; the label `rulename` says whose.
DATASOURCE: Final = frozenset({"DatasourceNoData", "DatasourceError"})
TEST_ALERT: Final = "TestAlert"
TEST_GROUPS: Final = ("test-", '{alertname="TestAlert", instance="Grafana"}')
TEST_INSTANCE: Final = "Grafana"
LEGACY_TEST: Final = "Test notification"
MATCHES_MAX: Final = 64
LEGACY_STATUS: Final = {"pending": Status.UNSPECIFIED, "paused": Status.SUPPRESSED}


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return a signal per alert; a test message of the contact point is marked as such."""
    notes = Notes()
    value = read_json(body, notes)
    if isinstance(value, Mapping) and "alerts" not in value and ("ruleName" in value or "ruleId" in value):
        return [_legacy(value, notes)]
    return read_alerts(value, notes, _shaped)


def _shaped(signal: ParsedSignal, alert: Mapping[str, Any], _: Notes) -> ParsedSignal:
    """Add what only Grafana says."""
    changes: dict[str, Any] = {}
    labels = signal.labels
    if labels.get(NAME_LABEL) in DATASOURCE:
        changes["rule_name"] = (labels.get("rulename") or signal.rule_name)[:RULE_MAX]
        if signal.status is Status.FIRING:
            changes["status"] = Status.NO_DATA
    # The button of a contact point sends `TestAlert` of the instance `Grafana`; older ones a group of that name.
    if signal.group_key.startswith(TEST_GROUPS) or (
        labels.get(NAME_LABEL) == TEST_ALERT and labels.get("instance") == TEST_INSTANCE
    ):
        changes["test"] = True
    values = alert.get("values")
    if isinstance(values, Mapping) and values:
        extra = {
            f"values.{name}": text
            for name, text in words_of(values, "values", Notes()).items()
            if len(name) < KEY_MAX - 8
        }
        changes["annotations"] = dict(list({**signal.annotations, **extra}.items())[:128])
    return replace(signal, **changes) if changes else signal


def _legacy(body: Mapping[str, Any], notes: Notes) -> ParsedSignal:
    """Read a notification of the old alerting: one rule, no fingerprint, no times."""
    rule_name = bounded(body.get("ruleName"), RULE_MAX, "ruleName", notes)
    rule_id = word_of(body.get("ruleId"), KEY_MAX, "ruleId", notes)
    if not rule_name and rule_id in ("", "0"):
        raise unreadable("ruleName", "is required: without ruleName or ruleId the alert has no identity")
    notes.add("a notification of Grafana's old alerting: no fingerprint, no times")
    status_raw = bounded(body.get("state"), RAW_MAX, "state", notes)
    status = LEGACY_STATUS.get(status_raw) or read_status(status_raw)
    if status is Status.UNSPECIFIED:
        notes.add(f"state is not understood: {status_raw or '(absent)'}")
    tags = words_of(body.get("tags"), "tags", notes)
    # Of several series none is the one; what they have in common is.
    series = labels_of(_series(body.get("evalMatches")), notes, "evalMatches.tags")
    labels = dict([*tags.items(), *((name, one) for name, one in series.items() if name not in tags)][:PAIRS_MAX])
    resource = resource_of({name: one for name, one in labels.items() if name in tags or "," not in one})
    raw = severity_in(labels)
    severity, severity_raw = severity_of(raw, "severity", notes)
    if not raw:
        notes.add("severity is not understood: (absent)")
    title = bounded(body.get("title"), SUMMARY_MAX, "title", notes)
    return ParsedSignal(
        dedup_key=bounded_key("legacy", text_of(body.get("orgId")), rule_id, rule_name),
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=" ".join((title or rule_name or f"rule {rule_id}").split()),
        description=bounded(body.get("message"), DESCRIPTION_MAX, "message", notes),
        rule_name=rule_name,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=_matches(body.get("evalMatches"), notes),
        links=links_of([(Rel.GENERATOR, body.get("ruleUrl")), (Rel.IMAGE, body.get("imageUrl"))], notes),
        warnings=notes.texts,
        # Later versions gave a test a random rule, but of no organisation.
        test=rule_id == "0" or (rule_name == LEGACY_TEST and text_of(body.get("orgId")) == "0"),
    )


def _series(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the tags of the series that made the old alerting fire."""
    for match in items_of(value)[:MATCHES_MAX]:
        yield from tags_of(object_of(match).get("tags"))


def _matches(value: Any, notes: Notes) -> dict[str, str]:
    """Return the series that made the old alerting fire, as far as there is room."""
    found: dict[str, Any] = {}
    for at, match in enumerate(items_of(value)[:MATCHES_MAX]):
        if isinstance(match, Mapping):
            name = bounded(match.get("metric"), KEY_MAX // 2, "evalMatches.metric", notes) or str(at)
            found.setdefault(f"values.{name}", match.get("value"))
    return words_of(found, "evalMatches", notes)
