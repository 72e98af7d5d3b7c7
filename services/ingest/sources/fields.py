"""What parsers of single vendors share: objects within objects, names for severities, lists of tags, safe links."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from services.ingest.signal import (
    KEY_MAX,
    LINKS_MAX,
    RAW_MAX,
    SIGNALS_MAX,
    SUMMARY_MAX,
    URL_MAX,
    WARNINGS_MAX,
    FieldError,
    LeftOut,
    Link,
    ParsedSignal,
    Rel,
    Severity,
    Signals,
    Unreadable,
    beyond,
    hashed,
    unreadable,
)
from services.ingest.sources.reading import PAIRS_MAX, Notes, bounded, clean, is_placeholder, text_of, word_of
from services.ingest.words import read_severity

SCHEMES: Final = ("http://", "https://")
# A label has room for a list, not for a story.
LIST_MAX: Final = 32
ONLY_PLACEHOLDER: Final = re.compile(
    r"\s*+(?:\$\{[^}]*+\}|\$[A-Z_][A-Z0-9_]*+(?:\[[^\]]*+\])?|\{[A-Z][A-Z0-9_.]*+\}|\{\{[^{}]*+\}\}|<no value>)\s*+"
)

Many = Callable[[Mapping[str, Any], str, Notes], ParsedSignal]


def each(value: Any, notes: Notes, read: Many) -> list[ParsedSignal]:
    """Return what READ (object, JSON pointer, notes) makes of an object, or of each of a list.

    An item that cannot be understood is named in the warnings of the others; Unreadable when none can.
    """
    if not isinstance(value, list):
        return [read(need_object(value, ""), "", notes)]
    if not value:
        raise unreadable("", "the list is empty")
    errors: list[FieldError] = []
    left_out: list[LeftOut] = []
    found: list[ParsedSignal] = []
    for at, one in enumerate(value[:SIGNALS_MAX]):
        try:
            found.append(read(need_object(one, ""), f"/{at}", Notes()))
        except Unreadable as error:
            wrong = [FieldError(f"[{at}].{inner.field}".rstrip("."), inner.description) for inner in error.errors]
            left_out.append(LeftOut(at, wrong[0]))
            errors += wrong
    if not found:
        raise Unreadable(errors)
    left_out += beyond(len(value), "")
    notes.leave_out(left_out)
    shared = notes.texts
    return Signals((replace(one, warnings=(*shared, *one.warnings)[:WARNINGS_MAX]) for one in found), left_out)


def need_object(value: Any, path: str) -> Mapping[str, Any]:
    """Return a JSON object that is not empty; anything else is Unreadable."""
    if not isinstance(value, dict) or not value:
        raise unreadable(path, "must be a JSON object")
    return value


def object_of(value: Any) -> Mapping[str, Any]:
    """Return a JSON object, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def items_of(value: Any) -> list[Any]:
    """Return a JSON list, an empty one for anything else."""
    return value if isinstance(value, list) else []


def key_of(value: Any, name: str, notes: Notes) -> str:
    """Return a sender's key: hashed when it is too long, empty when it is absent or an unrendered placeholder."""
    text = text_of(value) if not isinstance(value, list | Mapping | bool) else ""
    if len(text) > KEY_MAX:
        notes.add(f"{name} is longer than {KEY_MAX} characters and was hashed")
        return hashed(text)
    return word_of(text.strip(), KEY_MAX, name, notes)


def story_of(value: Any, limit: int, name: str, notes: Notes) -> str:
    """Return a text for people; one that is nothing but an unrendered placeholder is absent, one in it may stay."""
    text = bounded(value, limit, name, notes)
    if text and ("$" in text or "{" in text or "<" in text):
        bare = ONLY_PLACEHOLDER.fullmatch(text) is not None
        if bare or is_placeholder(text):
            notes.add(f"{name} holds an unrendered placeholder")
        return "" if bare else text
    return text


def line_of(value: Any, name: str, notes: Notes) -> str:
    """Return a text for people as one line for a summary."""
    return " ".join(story_of(value, SUMMARY_MAX, name, notes).split())


def severity_of(value: Any, name: str, notes: Notes, own: Mapping[str, Severity] | None = None) -> tuple[Severity, str]:
    """Return a severity and the sender's word for it: a name of OWN (lower case) goes before a common one."""
    raw = word_of(value, RAW_MAX, name, notes)
    if not raw:
        return Severity.UNSPECIFIED, ""
    found = (own or {}).get(raw.strip().lower(), read_severity(raw))
    if found is Severity.UNSPECIFIED:
        notes.add(f"{name} is not understood: {raw}")
    return found, raw


def links_of(candidates: Iterable[tuple[Rel, Any]], notes: Notes) -> tuple[Link, ...]:
    """Return the http(s) links among candidates, each once. A bad one costs itself only, and is noted."""
    found: dict[str, Link] = {}
    for rel, value in candidates:
        url = text_of(value).strip() if isinstance(value, str) else ""
        if not url:
            continue
        if not url.lower().startswith(SCHEMES) or len(url) > URL_MAX or any(mark.isspace() for mark in url):
            notes.add(f"left out a link that is no http(s) URL of at most {URL_MAX} characters: {url[:64]}")
        elif word_of(url, URL_MAX, "a link", notes):
            found.setdefault(url, Link(rel, url))
    return tuple(found.values())[:LINKS_MAX]


def tags_of(value: Any) -> Iterator[tuple[str, str]]:
    """Yield name and value of tags: `k:v,k:v,flag` (values may hold colons), a list of such, of pairs or of objects."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            # Several values under a name, or one thing that is nested.
            several = isinstance(one, list) and not any(isinstance(part, list | Mapping) for part in one)
            yield from ((str(name), text_of(part)) for part in (one if several else [one]))
        return
    parts = value.split(",", LIST_MAX * PAIRS_MAX) if isinstance(value, str) else items_of(value)
    for part in parts:
        if isinstance(part, str):
            name, colon, content = part.strip().partition(":")
            yield name.strip(), content.strip() if colon else "true"
        elif isinstance(part, list) and len(part) == len(("name", "value")):
            yield text_of(part[0]), text_of(part[1])
        elif isinstance(part, Mapping):
            yield text_of(part.get("key") or part.get("name")), text_of(part.get("value"))


def labels_of(pairs: Iterable[tuple[str, str]], notes: Notes, name: str = "tags") -> dict[str, str]:
    """Return tags as bounded labels; a name that comes several times has all its values, joined by commas."""
    found: dict[str, list[str]] = {}
    for raw_name, raw_value in pairs:
        short = clean(raw_name).strip()[:KEY_MAX]
        value = word_of(raw_value, KEY_MAX, f"{name}.{short}", notes).strip() if short else ""
        if not value:
            continue
        if short not in found and len(found) >= PAIRS_MAX:
            notes.add(f"{name} has more than {PAIRS_MAX} entries")
            break
        values = found.setdefault(short, [])
        if value not in values and len(values) < LIST_MAX:
            values.append(value)
    return {short: ",".join(values) for short, values in found.items()}


def firsts(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels in lower case with the first of several values: what says which thing is meant."""
    return {name.lower(): value.partition(",")[0] for name, value in labels.items()}


def text_in(value: Mapping[str, Any], names: Iterable[str], limit: int, notes: Notes) -> str:
    """Return the first text under these names that is there: a word if it is short, else a story."""
    for name in names:
        one = value.get(name)
        if isinstance(one, str | int | float):
            read = word_of if limit <= KEY_MAX else story_of
            if text := read(one, limit, name, notes):
                return text
    return ""
