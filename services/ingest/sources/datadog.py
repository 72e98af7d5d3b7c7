"""Datadog's webhooks: the default body, and what operators make of its variables in templates of their own.

The default body names neither monitor nor status: they are read from the link and the title. Templates may call a
variable what they like, so each is looked for under its likely names, at the top or one object deep.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus

from services.ingest.resources import RANKED, resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    KEY_MAX,
    RAW_MAX,
    RULE_MAX,
    URL_MAX,
    DeliveryFacts,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    bounded_key,
    hashed,
    unreadable,
)
from services.ingest.sources.fields import (
    each,
    firsts,
    key_of,
    labels_of,
    line_of,
    links_of,
    severity_of,
    story_of,
    tags_of,
)
from services.ingest.sources.reading import Notes, bounded, read_json, text_of, time_of, word_of, words_of
from services.ingest.words import SEVERITY_WORDS, read_severity

FORM: Final = "application/x-www-form-urlencoded"
FORM_FIELDS_MAX: Final = 512
# Besides what a notification is called, the states of a monitor: a template may say those instead.
TRANSITIONS: Final[Mapping[str, Status]] = {
    **dict.fromkeys(("triggered", "re-triggered", "retriggered", "renotify", "warn", "re-warn"), Status.FIRING),
    **dict.fromkeys(("alert", "firing"), Status.FIRING),
    **dict.fromkeys(("no data", "re-no data", "no_data", "re-no_data"), Status.NO_DATA),
    **dict.fromkeys(("recovered", "resolved", "ok"), Status.RESOLVED),
}
WARNS: Final = frozenset({"warn", "re-warn"})
PRIORITIES: Final = frozenset({"p1", "p2", "p3", "p4", "p5"})
# `[P2] [Re-Triggered on {host:web-1,env:prod}] the monitor's name`
TITLE: Final = re.compile(
    r"\s*+(?:\[(?P<priority>P[1-5])\]\s*+)?"
    r"\[(?P<transition>Re-Triggered|Triggered|Re-Warn|Warn|Re-No Data|No Data|Recovered|Renotify)"
    r"(?: on \{(?P<scope>[^}]{0,512})\})?\]\s*+(?P<name>.*+)",
    re.DOTALL | re.IGNORECASE,
)
PRIORITY_FIRST: Final = re.compile(r"\s*+\[(P[1-5])\]\s*+(.*+)", re.DOTALL)
MONITOR_LINK: Final = re.compile(r"https://[A-Za-z0-9.-]{1,128}/monitors[/#](\d{1,19})(?:\?[^\s()\[\]<>\"']{0,1500})?")
MONITOR_PARAMETER: Final = re.compile(r"[?&;]monitor_id=(\d{1,19})")
GROUP_PARAMETER: Final = re.compile(r"[?&;]group=([^&\s()\[\]]{1,512})")
SEARCHED_MAX: Final = 65_536
# Kubernetes and clouds in Datadog's spelling, under the names of the others.
TAGS: Final[Mapping[str, str]] = {
    "kube_stateful_set": "statefulset",
    "kube_daemon_set": "daemonset",
    "kube_container_name": "container",
    "kube_node": "node",
    "availability-zone": "availability_zone",
    "aws_account": "account_id",
}
# Variables whose names stand for nothing when somebody forgot the `$`.
VARIABLES: Final = frozenset(
    [
        "ID",
        "AGGREG_KEY",
        "ALERT_CYCLE_KEY",
        "ALERT_ID",
        "ALERT_METRIC",
        "ALERT_PRIORITY",
        "ALERT_QUERY",
        "ALERT_SCOPE",
        "ALERT_STATUS",
        "ALERT_TITLE",
        "ALERT_TRANSITION",
        "ALERT_TYPE",
        "DATE",
        "EVENT_MSG",
        "EVENT_TITLE",
        "EVENT_TYPE",
        "HOSTNAME",
        "LAST_UPDATED",
        "LINK",
        "ORG_ID",
        "ORG_NAME",
        "PRIORITY",
        "SNAPSHOT",
        "TAGS",
        "TEXT_ONLY_MSG",
        "USER",
        "USERNAME",
        "EMAIL",
    ]
)
CYCLE: Final = ("alertcyclekey", "cyclekey", "dedupkey")
AGGREGATE: Final = ("aggregkey", "aggregate", "aggregationkey", "aggregatekey", "eventaggregkey")
MONITOR: Final = ("alertid", "monitorid", "alertalertid", "monitor")
SCOPE: Final = ("alertscope", "scope", "alertalertscope")
EVENT: Final = ("id", "eventid")
SAYS: Final = ("alerttransition", "transition", "alertalerttransition")
STATES: Final = ("status", "state", "alertstate")
PRIORITY: Final = ("alertpriority", "monitorpriority", "priority")
SEVERITY: Final = ("severity", "securitysignalseverity", "alertseverity")
TITLES: Final = ("title", "eventtitle", "alerttitle", "subject", "summary", "name", "monitorname", "monitortitle")
NAMES: Final = ("alerttitle", "monitorname", "monitortitle", "alertname", "rulename")
BODIES: Final = (
    *("body", "eventmsg", "textonlymsg", "textmsg", "eventmessage", "message", "msg", "description", "alertstatus"),
)
WHEN: Final = (
    *("lastupdated", "lastupdatedposix", "date", "dateposix", "timestamp", "alerttime", "updatedat", "time"),
    *("occurredat", "occurredatposix"),
)
LINKS: Final[Mapping[Rel, tuple[str, ...]]] = {
    Rel.SOURCE: ("link", "eventurl", "alerturl", "url", "eventlink", "alertlink"),
    Rel.RUNBOOK: ("runbook", "runbookurl"),
    Rel.IMAGE: ("snapshot", "snapshoturl", "image", "imageurl"),
}
HOSTS: Final = ("hostname", "host")
# Of $ALERT_TYPE: what kind of message it is. Where no priority is told, it says at least whether it warns.
TYPES: Final = ("alerttype", "alertalerttype")
TYPED: Final = {"error": Severity.ERROR, "warning": Severity.WARNING, "info": Severity.INFO}
# And where neither a transition nor the title says how the monitor stands, it does.
MOVED: Final = {"error": Status.FIRING, "warning": Status.FIRING, "success": Status.RESOLVED}
TAGGED: Final = frozenset({"tags", "alerttags", "eventtags", "labels"})
# What its button for a test puts before a monitor's name, and says in the message: somebody may call one so.
TESTED: Final = ("[TEST]", "Test notification triggered by ")
# Objects whose fields are the notification's own.
CONTAINERS: Final = frozenset({"alert", "event", "monitor", "payload", "data", "metadata", "variables", "details"})
# Of the template; tags, texts, times and what became a field have places of their own.
SAID: Final = frozenset({*TAGGED, *TITLES, *BODIES, *WHEN})
KNOWN: Final = frozenset({*CYCLE, *AGGREGATE, *MONITOR, *EVENT, *SAYS, *TITLES, *BODIES, *WHEN, "tags", "eventtype"})


def parse(body: bytes, facts: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of a notification; of a list (a template may be one) one for each."""
    notes = Notes()
    value = _form(body, notes) if facts.content_type.lower().startswith(FORM) else read_json(body, notes)
    return each(value, notes, _notification)


def _form(body: bytes, notes: Notes) -> Any:
    """Read a body that was encoded as a form, or posted as JSON under that name."""
    if body.lstrip()[:1] in (b"{", b"["):
        return read_json(body, notes)
    try:
        fields = dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=FORM_FIELDS_MAX))
    except ValueError:
        raise unreadable("", f"the form has more than {FORM_FIELDS_MAX} fields") from None
    if len(fields) == 1 and (content := next(iter(fields.values()))).lstrip()[:1] in ("{", "["):
        return read_json(content.encode("utf-8", "replace"), notes)
    return fields


class _Words:
    """The scalars of a notification under plain names: its own before those of the objects in it."""

    def __init__(self, body: Mapping[str, Any], notes: Notes) -> None:
        self._notes = notes
        self._values: dict[str, Any] = {}
        self.known = False
        for name, value in body.items():
            self._put(_plain(name), value)
        for outer, inner in body.items():
            for name, value in inner.items() if isinstance(inner, Mapping) else ():
                self._put(_plain(outer) + _plain(name), value)
                # `org.id` is not the event's id, and `incident.title` not the alert's
                if _plain(outer) in CONTAINERS:
                    self._put(_plain(name), value)

    def _put(self, name: str, value: Any) -> None:
        self.known = self.known or name in KNOWN
        if isinstance(value, str | int | float) and not isinstance(value, bool) and text_of(value).strip():
            self._values.setdefault(name, value)

    def all(self, names: Sequence[str], limit: int) -> Iterator[str]:
        """Yield what stands under these names, the best first, but no variable that was not filled in."""
        for name in names:
            if name not in self._values:
                continue
            # what could become a key, a label or a link, or a text for people
            read = word_of if limit <= URL_MAX + 1 else story_of
            text = read(self._values[name], limit, name, self._notes).strip()
            if text in VARIABLES:
                self._notes.add(f"{name} holds the name of a variable, not its value")
            elif text:
                yield text

    def first(self, names: Sequence[str], limit: int = KEY_MAX) -> str:
        """Return the best of them, or nothing."""
        return next(self.all(names, limit), "")

    def raw(self, names: Sequence[str]) -> Any:
        """Return the first value as it came, for times."""
        return next((self._values[name] for name in names if self.first((name,))), None)

    def key(self, names: Sequence[str]) -> str:
        """Return the first that may be a key."""
        for name in names:
            if self.first((name,)) and (key := key_of(self._values[name], name, self._notes)):
                return key
        return ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "").replace(".", "").lstrip("$")


def _notification(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one notification."""
    words = _Words(body, notes)
    if not words.known:
        raise unreadable("", "nothing of a notification of Datadog is in it: neither id, title, body nor alert")
    title = words.first(TITLES, 4096)
    match = TITLE.fullmatch(title)
    told = match.groupdict() if match else {}
    if not match and (priority := PRIORITY_FIRST.fullmatch(title)):
        told = {"priority": priority[1], "name": priority[2]}
    named = words.first(NAMES)
    rule_name = (match_of[4] if (match_of := TITLE.fullmatch(named)) else named) or told.get("name") or title
    text = words.first(BODIES, SEARCHED_MAX)
    status, status_raw = _status(words, told, notes)
    severity, severity_raw = _severity(words, told, status_raw, notes)
    scope = words.first(SCOPE, DESCRIPTION_MAX) or told.get("scope") or ""
    labels = _labels(body, words, scope, notes)
    resource = resource_of({TAGS.get(name, name): value for name, value in firsts(labels).items()})
    when = time_of(words.raw(WHEN), "date", notes)
    link = MONITOR_LINK.search(html.unescape(text))
    urls = [*((rel, words.first(names, URL_MAX + 1)) for rel, names in LINKS.items())]
    urls.append((Rel.GENERATOR, link[0] if link else ""))
    return ParsedSignal(
        dedup_key=_key(words, {**told, "scope": scope}, _monitor_page(words, text), labels.get("host", ""), notes),
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=line_of(title or text, "title", notes) or "a notification of Datadog that says nothing about itself",
        description=_description(text, notes),
        rule_name=bounded(rule_name, RULE_MAX, "title", Notes()).strip(),
        event_time=when,
        end_time=when if status is Status.RESOLVED else None,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=_rest(body),
        links=links_of(urls, notes),
        warnings=notes.texts,
        test=rule_name.startswith(TESTED[0]) and TESTED[1] in text,
        body_pointer=pointer,
    )


def _rest(body: Mapping[str, Any]) -> dict[str, str]:
    """Return what else the template sends (metric, query, organisation, incident) as far as it was filled in."""
    found = {name: one for name, one in body.items() if not isinstance(one, Mapping)}
    for outer, inner in body.items():
        found |= {f"{outer}.{name}": one for name, one in inner.items()} if isinstance(inner, Mapping) else {}
    left = {
        name: one
        for name, one in found.items()
        if _plain(name) not in SAID and not (isinstance(one, str) and one in VARIABLES)
    }
    return words_of(left, "body", Notes())


def _status(words: _Words, told: Mapping[str, str | None], notes: Notes) -> tuple[Status, str]:
    """Return what the transition says, else the title; a word we do not know says nothing."""
    raws = [*words.all(SAYS, RAW_MAX), *filter(None, [told.get("transition")]), *words.all(STATES, RAW_MAX)]
    for raw in raws:
        if found := TRANSITIONS.get(raw.lower()):
            return found, raw
    for raw in [] if raws else words.all(TYPES, RAW_MAX):
        if found := MOVED.get(raw.lower()):
            notes.add("no transition: the status is the type of the alert")
            return found, raw
    notes.add(f"status is not understood: {raws[0] if raws else '(absent)'}")
    return Status.UNSPECIFIED, raws[0] if raws else ""


def _severity(words: _Words, told: Mapping[str, str | None], status_raw: str, notes: Notes) -> tuple[Severity, str]:
    """Return how bad it is. `priority` may also be that of the event stream (normal, low), which says nothing of it."""
    if status_raw.lower() in WARNS:
        return Severity.WARNING, status_raw
    for raw in (*words.all(PRIORITY, RAW_MAX), told.get("priority") or ""):
        if raw.lower() in PRIORITIES:
            return read_severity(raw), raw
    for raw in words.all(SEVERITY, RAW_MAX):
        if raw.lower() in SEVERITY_WORDS:
            return severity_of(raw, "severity", notes)
    for raw in words.all(TYPES, RAW_MAX):
        if found := TYPED.get(raw.lower()):
            notes.add("no priority: the severity is the type of the alert")
            return found, raw
    notes.add("no priority: the monitor has none, or the template does not send it")
    return Severity.UNSPECIFIED, words.first((*SEVERITY, *PRIORITY), RAW_MAX)


def _monitor_page(words: _Words, text: str) -> str:
    """Return where the monitor's number and group may stand: the links of fields and body."""
    links = [words.first((name,), URL_MAX) for names in LINKS.values() for name in names]
    return html.unescape(" ".join([*links, text]))


def _key(words: _Words, told: Mapping[str, str | None], page: str, host: str, notes: Notes) -> str:
    """Return what stays the same from triggered to recovered."""
    scope = told.get("scope") or ""
    if key := words.key(CYCLE) or words.key(AGGREGATE):
        return key
    monitor = words.key(MONITOR)
    if not monitor and (match := MONITOR_LINK.search(page) or MONITOR_PARAMETER.search(page)):
        monitor = match[1]
    if not scope and (match := GROUP_PARAMETER.search(page)):
        scope = unquote_plus(match[1])
    scope = _in_order(scope or words.first(HOSTS) or host)
    if monitor:
        notes.add("no $ALERT_CYCLE_KEY or $AGGREG_KEY: the key is made of monitor and scope")
        return bounded_key("monitor", monitor, scope)
    if name := told.get("name") or words.first(NAMES):
        notes.add("no key and no monitor: the key is a hash of the title without its status, and the scope")
        return hashed("title", name, scope)
    if event := words.key(EVENT):
        notes.add("no key but the event's: what recovers cannot be told from what was triggered")
        return bounded_key("event", event)
    notes.add("no key and no event: the key is a hash of what was filled in")
    return hashed("body", words.first(TITLES, 4096), scope, words.first(BODIES, SEARCHED_MAX))


def _in_order(scope: str) -> str:
    """Return a scope as the same text whatever the order and spacing of its tags."""
    return ",".join(sorted(part.strip() for part in scope.split(",") if part.strip()))


def _labels(body: Mapping[str, Any], words: _Words, scope: str, notes: Notes) -> dict[str, str]:
    """Return tags and scope, and fields of the template that name what is meant."""
    own = [inner for outer, inner in body.items() if _plain(outer) in CONTAINERS and isinstance(inner, Mapping)]
    told = (one for holder in (body, *own) for name, one in holder.items() if _plain(name) in TAGGED and one)
    tags = next(told, None)
    if isinstance(tags, str):
        tags = word_of(tags[:SEARCHED_MAX], SEARCHED_MAX, "tags", notes)
    pairs = [*tags_of(tags), *((name, value) for name, value in tags_of(scope) if value != "true")]
    have = {name.lower() for name, _ in pairs}
    for name, value in (pair for holder in (body, *own) for pair in holder.items()):
        if name.lower() in RANKED and name.lower() not in have and isinstance(value, str | int | float):
            pairs.append((name, words.first((_plain(name),))))
            have.add(name.lower())
    return labels_of(pairs, notes)


def _description(text: str, notes: Notes) -> str:
    """Return the body without the fences that Datadog puts around its markdown."""
    plain = text.strip()
    if plain.startswith("%%%"):
        plain = plain.removeprefix("%%%").removesuffix("%%%").strip()
    return bounded(html.unescape(plain), DESCRIPTION_MAX, "body", notes)
