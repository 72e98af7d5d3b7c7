"""Bodies of Kibana's connectors: whoever sets one up writes it, so that a thing has several names and shapes."""

from collections.abc import Mapping
from typing import Any, Final

from services.ingest.signal import Unreadable
from services.ingest.sources.fields import object_of
from services.ingest.sources.reading import Notes, read_json, text_of

PARTS_MAX: Final = 8
# Of what is added: each dot doubles the ways to look for it, and the names are the sender's.
DOTS_MAX: Final = 3
CONTEXT: Final = "context"
# Names without separators and in small letters, by what the documentation calls them.
FLAT: Final = {
    "ruleid": "rule.id",
    "rulename": "rule.name",
    "ruletags": "rule.tags",
    "ruletype": "rule.type",
    "ruleurl": "rule.url",
    "rulespaceid": "rule.spaceId",
    "alertname": "rule.name",
    "alertinstanceid": "alert.id",
    "alertuuid": "alert.uuid",
    "alertactiongroup": "alert.actionGroup",
    "alertactiongroupname": "alert.actionGroupName",
    "actiongroup": "alert.actionGroup",
    "actiongroupname": "alert.actionGroupName",
    "alertreason": "context.reason",
}
# What a template whose names are flat calls as others do, the best first.
USUAL: Final = {
    "alert.id": ("fingerprint", "id"),
    "rule.name": ("name",),
    "context.reason": ("description",),
    "context.alertDetailsUrl": ("url",),
    "date": ("lastReceived",),
}
# Objects of a context; others stay the texts that they are rendered as.
OBJECTS: Final = frozenset({"host", "cloud", "container", "kubernetes", "orchestrator", "service"})
# What the alerts of a rule are told apart by: documents in themselves, of any field, so `status` is none of the alert.
GROUPINGS: Final = frozenset({"groupByKeys", "grouping"})


def read_body(body: bytes, notes: Notes) -> Any:
    """Return the JSON; objects that a template put between quotation marks are taken out of them."""
    try:
        return read_json(body, notes)
    except Unreadable:
        mended = body.replace(b'"{', b"{").replace(b'}"', b"}")
        if mended == body:
            raise
        value = read_json(mended, notes)
        notes.add("objects between quotation marks were read as objects")
        return value


def at(value: Any, path: str) -> Any:
    """Return what stands under a dotted path, whether its names are nested, dotted, or both; None when nothing does."""
    if not isinstance(value, Mapping):
        return None
    if path in value:
        return value[path]
    parts = path.split(".", PARTS_MAX)
    for cut in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:cut])
        inner = value.get(head)
        if isinstance(inner, Mapping) and (found := at(inner, ".".join(parts[cut:]))) is not None:
            return found
    return None


def canonical(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a body with what it spells otherwise, or has as JSON in a text, added under the documented names."""
    found: dict[str, Any] = {}
    for name, value in body.items():
        if not isinstance(value, Mapping) and (path := _path(name)):
            found.setdefault(path, value)
    # What rules are called now were alerts, and what are alerts now were instances of them.
    old = next((value for name, value in body.items() if _plain(name) == "alertid"), None)
    ruled = at(body, "rule.id") is not None or "rule.id" in found
    if text_of(old):
        found.setdefault("alert.id" if ruled and "alert.id" not in found else "rule.id", old)
    if "rule.id" in found:
        for path, names in USUAL.items():
            if told := next((body[one] for one in names if text_of(body.get(one))), None):
                found.setdefault(path, told)
    context = {**object_of(body.get(CONTEXT)), **_context(found)}
    found |= {f"{CONTEXT}.{name}": inner for name in OBJECTS if (inner := _object(context.get(name)))}
    for name in GROUPINGS:
        told = _object(context.get(name)).items()
        found = {**{path: one for path, one in told if path.partition(".")[0] in OBJECTS}, **found}
    near = ((path, one) for path, one in found.items() if path.count(".") <= DOTS_MAX)
    added = {path: one for path, one in near if _lacks(at(body, path), one)}
    return {**body, **added}


def _lacks(had: Any, one: Any) -> bool:
    """Say whether something may be added: of what is there, only a text gives way, to the object that it holds."""
    return had is None or (isinstance(had, str) and isinstance(one, Mapping))


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(".", "")


def _path(name: str) -> str:
    """Return the documented path of a name without objects; none of what is no such name."""
    if name.startswith(CONTEXT) and (rest := name[len(CONTEXT) :].lstrip("._")):
        return f"{CONTEXT}.{rest[0].lower()}{rest[1:]}"
    return FLAT.get(_plain(name), "")


def _context(found: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{CONTEXT}."
    return {path.removeprefix(prefix): one for path, one in found.items() if path.startswith(prefix)}


def _object(value: Any) -> Mapping[str, Any]:
    """Return an object, or the one that a text holds: as such does Kibana render the objects of a context."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = read_json(value.encode("utf-8", "replace"), Notes())
        except Unreadable:
            return {}
    return object_of(value)
