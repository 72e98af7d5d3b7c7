"""Zabbix: whatever its webhook script or an operator's template makes of the macros.

Ours is `deploy/senders/zabbix.js`. The names of others are read in any spelling, as long as they say which macro they
hold: `event_id`, `EventID`, `EVENT.ID` and `{"event": {"id": ...}}` are the same. Times are the server's local ones and
name no zone; a field `timezone` (`+02:00`) tells it, else they are read as UTC, which is noted. Media types that send
no more than subject and message are read by the words that Zabbix itself puts there.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.ingest.resources import CLUSTER, ENVIRONMENT, HOST, NAMESPACE, RANKED, SERVICE, resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    KEY_MAX,
    RAW_MAX,
    RULE_MAX,
    SUMMARY_MAX,
    URL_MAX,
    DeliveryFacts,
    Kind,
    Link,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    Unreadable,
    bounded_key,
    hashed,
    unreadable,
)
from services.ingest.sources.fields import each, firsts, key_of, labels_of, links_of, severity_of, tags_of
from services.ingest.sources.reading import Notes, read_json, text_of, time_of, words_of
from services.ingest.sources.templates import Filled, filled_in, plain_of, read_template
from services.ingest.words import read_status

SEVERITIES: Final = {
    "5": Severity.CRITICAL,
    "disaster": Severity.CRITICAL,
    "4": Severity.ERROR,
    "high": Severity.ERROR,
    "3": Severity.ERROR,
    "average": Severity.ERROR,
    "2": Severity.WARNING,
    "warning": Severity.WARNING,
    "1": Severity.INFO,
    "information": Severity.INFO,
    "0": Severity.UNSPECIFIED,
    "not classified": Severity.UNSPECIFIED,
}
VALUES: Final = {"1": Status.FIRING, "0": Status.RESOLVED}
# Of {EVENT.SOURCE}: Zabbix itself cannot measure, or can again.
INTERNAL: Final = "3"
YES: Final = frozenset({"yes", "1", "true"})
NO: Final = frozenset({"no", "0", "false"})
EVENT_IDS: Final = ("eventid", "problemid", "problemeventid", "originalproblemid", "alertuid", "id")
SEVERITY: Final = ("eventnseverity", "nseverity", "triggernseverity", "eventseverity", "triggerseverity", "severity")
SEVERITY_OTHERS: Final = ("severityid", "triggerseveritytext", "severitytext", "priority")
# A template's fields may name these; ids are Zabbix' own, and a zone is one of the clock.
PLACES: Final = frozenset(
    name for name, (attribute, _) in RANKED.items() if attribute in (SERVICE, ENVIRONMENT, CLUSTER, NAMESPACE)
)
HOSTS: Final = ("hosthost", "host", "hostname", "hostdns", "hostip")
RULES: Final = ("triggername", "eventname", "problemname", "trigger", "name", "problem", "alert", "alertname")
TITLES: Final = (
    *(
        "eventname",
        "triggername",
        "trigger",
        "title",
        "subject",
        "alertsubject",
        "name",
        "problem",
        "alert",
        "alertname",
    ),
)
TEXTS: Final = (
    "message",
    "alertmessage",
    "description",
    "eventopdata",
    "opdata",
    "item",
    "itemname",
    "triggerdescription",
)
LINKS: Final = (
    (Rel.SOURCE, ("link", "url", "eventurl", "alerturl", "problemurl", "linktoupstreamdetails", "generatorurl")),
    (Rel.RUNBOOK, ("triggerurl", "runbook", "runbookurl")),
    (Rel.IMAGE, ("imageurl",)),
)
EVENT_IN_LINK: Final = re.compile(r"[?&]eventid=([0-9]{1,20})(?:&|#|$)")
WORDS: Final = re.compile(r"[a-z]+")
DOTTED: Final = re.compile(
    r"([0-9]{4})[.-]([0-9]{2})[.-]([0-9]{2})[ T]+([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(Z|[+-][0-9]{2}:?[0-9]{2})?"
)
ZONE: Final = re.compile(r"Z|UTC|[+-][0-9]{2}:?[0-9]{2}")
TIME_MAX: Final = 64
BEGINNINGS: Final = ("eventtimestamp", "eventclock", "eventdatetime", "started", "startedat", "startsat")
ENDS: Final = (
    *("eventrecoverytimestamp", "recoverytimestamp", "eventrecoverydatetime", "resolvedat", "endsat", "recoveryclock"),
)
STATES: Final = (
    *("eventstatus", "status", "state", "problemstatus", "triggerstatus", "alertstatus"),
    *("eventrecoverystatus", "recoverystatus"),
)
# Those of the recovery are filled in once there is one, and only then.
NUMBERS: Final = ("eventvalue", "triggervalue", "problemvalue", "eventrecoveryvalue", "recoveryvalue")
OVER_PREFIXES: Final = ("eventrecovery", "recovery", "eventr")
# Zabbix' own subjects and messages, as its media types have them until somebody writes others.
SUBJECT: Final = re.compile(r"(Problem|Resolved|Updated problem)(?: in [^:]{1,64}+)?: (.+)", re.DOTALL)
SUBJECTS: Final = {"Problem": "PROBLEM", "Resolved": "RESOLVED"}
SPOKEN: Final[Mapping[tuple[str, ...], re.Pattern[str]]] = {
    ("originalproblemid",): re.compile(r"^Original problem ID: ([0-9]{1,20})\s*$", re.MULTILINE),
    ("severity",): re.compile(r"^Severity: ([A-Za-z ]{1,32})\r?$", re.MULTILINE),
    ("eventtime", "eventdate"): re.compile(r"^Problem started at ([0-9:]{5,8}) on ([0-9.]{10})\b", re.MULTILINE),
    ("eventrecoverytime", "eventrecoverydate"): re.compile(
        r"^Problem has been resolved (?:in [0-9a-z ]{1,40})?at ([0-9:]{5,8}) on ([0-9.]{10})\b", re.MULTILINE
    ),
    ("status", "eventackstatus"): re.compile(
        r"^Current problem status is ([A-Z]{2,16}), acknowledged: (Yes|No)\b", re.MULTILINE
    ),
}


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of an event; its key is the problem's event id, the same when the problem is over."""
    notes = Notes()
    return each(read_template(body, notes), notes, _one)


def _one(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one message."""
    fields = Filled(body, notes)
    nameless = _listen(fields, notes)
    status, status_raw = _status(fields)
    # The button "Test" of a media type sends the macros as they are.
    test = status is Status.UNSPECIFIED and fields.lacks(*EVENT_IDS)
    host = fields.text(RULE_MAX, *HOSTS)
    rule_name = fields.text(RULE_MAX, *RULES)
    links = _links(fields, notes)
    key = "test" if test else _key(fields, links, host, rule_name, notes)
    if nameless:
        key = hashed("update", host, rule_name, fields.text(DESCRIPTION_MAX, *TEXTS))
    if status is Status.UNSPECIFIED:
        notes.add(f"status is not understood: {status_raw or '(absent)'}")
    severity, severity_raw = severity_of(
        fields.text(RAW_MAX, *SEVERITY, *SEVERITY_OTHERS), "severity", notes, SEVERITIES
    )
    tags = labels_of(_tags(fields, notes), notes)
    named = {name.lower(): one for name, one in body.items() if name.lower() in PLACES and isinstance(one, str)}
    resource = resource_of({**filled_in(named), **firsts(tags), **({HOST: host} if host else {})})
    text = fields.text(DESCRIPTION_MAX, *TEXTS)
    began, moved, ended = _times(fields, status, notes)
    words = {name: one for name, one in filled_in(body).items() if plain_of(name) not in ("eventtags", "tags", *TEXTS)}
    return ParsedSignal(
        dedup_key=key,
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=" ".join((fields.text(SUMMARY_MAX, *TITLES) or text[:SUMMARY_MAX].partition("\n")[0]).split())
        or f"event {key} of Zabbix",
        description=text,
        rule_name=rule_name,
        event_time=moved,
        start_time=began,
        end_time=ended,
        resource=resource,
        targets=target_keys(resource),
        labels=tags,
        annotations=words_of(words, "body", notes),
        links=links,
        warnings=notes.texts,
        test=test,
        body_pointer=pointer,
        # As an alert it would be another one than the problem that somebody works on.
        kind=Kind.NOTE if nameless else Kind.ALERT,
    )


def _listen(fields: Filled, notes: Notes) -> bool:
    """Learn from the default subject and message what no field of its own says. Never what is meant: that is free text.

    Say whether it is an update that names its problem by nothing but its title.
    """
    match = SUBJECT.fullmatch(fields.text(SUMMARY_MAX, "subject", "alertsubject", "title"))
    text = fields.text(DESCRIPTION_MAX, "message", "alertmessage", "description")
    told = {names: found.groups() for names, pattern in SPOKEN.items() if (found := pattern.search(text))}
    if match:
        told = {("status",): (SUBJECTS.get(match[1], ""),), ("problemname",): (match[2],), **told}
    known = {
        "originalproblemid": EVENT_IDS,
        "status": (*STATES, *NUMBERS),
        "problemname": RULES,
        "severity": (*SEVERITY, *SEVERITY_OTHERS),
    }
    for names, values in told.items():
        if any(values) and fields.first(*known.get(names[0], names)) is None:
            notes.add(f"{names[0]} was read from the words of the message")
            for name, value in zip(names, values, strict=True):
                fields.learn(name, value.strip())
    update = match is not None and match[1] not in SUBJECTS
    return update and fields.first(*EVENT_IDS, "triggerid") is None


def _key(fields: Filled, links: tuple[Link, ...], host: str, rule_name: str, notes: Notes) -> str:
    """Return the id of the problem's event, else of what is known the best thing that recovery says too."""
    if key := key_of(fields.first(*EVENT_IDS), "event_id", notes):
        return key
    for link in links:
        if match := EVENT_IN_LINK.search(link.url):
            notes.add("no event id: the key is the one in the link")
            return match[1]
    if trigger := fields.text(KEY_MAX, "triggerid"):
        notes.add("no event id: the key is the trigger on its host")
        return bounded_key("trigger", trigger, host)
    name = rule_name or fields.text(SUMMARY_MAX, *TITLES)
    if not name:
        raise unreadable("event_id", "is required: without event_id, trigger_id or a name the event has no identity")
    notes.add("no event id and no trigger id: the key is a hash of host and name")
    return hashed(host, name)


def _status(fields: Filled) -> tuple[Status, str]:
    """Return how the problem stands. An update is no recovery: somebody acknowledged it, or said something."""
    value = fields.text(RAW_MAX, *NUMBERS)
    word = fields.text(RAW_MAX, *STATES)
    raw = word or value
    if not value and word in VALUES:
        value = word
    status = VALUES.get(value, Status.UNSPECIFIED) if value else read_status(word)
    update = fields.text(RAW_MAX, "eventupdatestatus", "updatestatus").lower() in YES
    if not value and not word and update:
        return Status.ACKNOWLEDGED, "update"
    if status is not Status.FIRING:
        return status, raw
    if fields.text(RAW_MAX, "eventsource") == INTERNAL:
        return Status.NO_DATA, raw
    acked = fields.text(RAW_MAX, "eventackstatus", "eventack", "ackstatus", "acknowledged").lower()
    action = fields.text(RAW_MAX, "eventupdateaction", "updateaction").lower() if update else ""
    did = set(WORDS.findall(action))
    if "unacknowledged" in did:
        return Status.FIRING, raw
    if "acknowledged" in did or acked in YES or (update and not action and acked not in NO):
        return Status.ACKNOWLEDGED, raw
    return Status.FIRING, raw


def _tags(fields: Filled, notes: Notes) -> Iterator[tuple[str, str]]:
    """Yield the tags: of {EVENT.TAGSJSON}, as text or JSON, or of {EVENT.TAGS}."""
    value = fields.first("eventtagsjson", "tagsjson", "eventtags", "triggertags", "tags")
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = read_json(value.encode("utf-8", "replace"), notes)
        except Unreadable:
            notes.add("the tags are no JSON")
            return
    if isinstance(value, list):
        for one in value:
            if isinstance(one, Mapping) and "tag" in one:
                yield text_of(one["tag"]), text_of(one.get("value")) or "true"
            else:
                yield from tags_of([one])
        return
    yield from tags_of(value)


def _links(fields: Filled, notes: Notes) -> tuple[Link, ...]:
    """Return the links, and the page of the event where only the server's URL is told."""
    found: list[tuple[Rel, Any]] = [(rel, value) for rel, names in LINKS for value in fields.values(*names)]
    base = fields.text(URL_MAX, "zabbixurl").rstrip("/")
    event, trigger = (fields.text(RAW_MAX, name) for name in ("eventid", "triggerid"))
    if EVENT_IN_LINK.search(base):
        found.append((Rel.SOURCE, base))
    elif base and event.isdecimal() and trigger.isdecimal():
        found.append((Rel.SOURCE, f"{base}/tr_events.php?triggerid={trigger}&eventid={event}"))
    return links_of(found, notes)


def _times(fields: Filled, status: Status, notes: Notes) -> tuple[int | None, int | None, int | None]:
    """Return when the problem began, when it became what it is, and when it ended."""
    ended = moved = None
    if status is Status.RESOLVED:
        told = (_moment(fields, ENDS, prefix, notes) for prefix in OVER_PREFIXES)
        moved = ended = next((one for one in told if one is not None), None)
    # What is told later may have its own moment there, unless it tells that by another name.
    clock = ("clock",) if status is Status.FIRING or ended else ()
    began = _moment(fields, (*BEGINNINGS, *clock), "event", notes)
    if status is Status.ACKNOWLEDGED:
        moved = _moment(fields, ("eventupdatetimestamp", "updatetimestamp"), "eventupdate", notes)
    elif status is Status.FIRING:
        moved = began
    return began, moved or _moment(fields, ("timestamp", "datetime", "lastreceived"), "", notes), ended


def _moment(fields: Filled, names: tuple[str, ...], prefix: str, notes: Notes) -> int | None:
    """Return the first of the named moments that can be read, or that of `<prefix>date` and `<prefix>time`."""
    date, clock = (fields.text(TIME_MAX, f"{prefix}{name}") for name in ("date", "time"))
    zone = fields.text(TIME_MAX, "timezone", "zone", "utcoffset")
    for told in (*(fields.text(TIME_MAX, name) for name in names), f"{date} {clock}", clock, date):
        match = DOTTED.fullmatch(told)
        whole = f"{match[1]}-{match[2]}-{match[3]}T{match[4]}" if match else told
        if match:
            whole += match[5] or (zone if ZONE.fullmatch(zone) else "")
        if whole.strip() and (found := time_of(whole, "", Notes())) is not None:
            return time_of(whole, f"{prefix or 'its'} time", notes) if match else found
    return None
