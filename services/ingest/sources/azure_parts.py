"""What Azure's schemas share: severities, resources by their ids, and the health that Azure tells of itself."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.ingest.resources import CLOUD_ID, CLUSTER, HOST, SERVICE, resource_of
from services.ingest.signal import SUMMARY_MAX, Severity, bounded_key
from services.ingest.sources.fields import key_of, object_of
from services.ingest.sources.reading import Notes, text_of

SEVERITIES: Final = {
    "sev0": Severity.CRITICAL,
    "sev1": Severity.ERROR,
    "sev2": Severity.WARNING,
    "sev3": Severity.INFO,
    "sev4": Severity.INFO,
}
# The subscription of the samples that the button "test action group" sends.
TEST_SUBSCRIPTION: Final = "/subscriptions/11111111-1111-1111-1111-111111111111/"
ARM: Final = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)(?:/resourcegroups/(?P<group>[^/]+))?"
    r"(?:/providers/(?P<type>[^/]+/[^/]+)/(?P<name>[^/]+)(?:/.*)?)?",
    re.DOTALL,
)
# What the last name of a resource id names, where OpenTelemetry has a word for it.
NAMED: Final = {
    "microsoft.compute/virtualmachines": HOST,
    "microsoft.hybridcompute/machines": HOST,
    "microsoft.containerservice/managedclusters": CLUSTER,
    "microsoft.web/sites": SERVICE,
    "microsoft.app/containerapps": SERVICE,
}
RESOURCES_MAX: Final = 32
# Names that log searches and scale sets have for a host.
MACHINES: Final = ("computer", "vmname")
# Stages of what Azure tells of itself, and health of a resource; others (planned, unknown) mean that it is not over.
OVER: Final = frozenset({"resolved", "complete", "completed", "canceled", "cancelled", "rca", "available"})


@dataclass(frozen=True, slots=True)
class Health:
    """One telling of a trouble of Azure's own: each has an alert of its own, and only this joins them."""

    key: str
    stage: str
    over: bool
    title: str


def health_of(facts: Mapping[str, Any], rule: str, target: str, notes: Notes) -> Health | None:
    """Return what an entry of the activity log says of the health of Azure's service, or of a resource of ours."""
    properties = object_of(facts.get("properties"))
    title = text_of(properties.get("title"))
    if tracking := key_of(properties.get("trackingId"), "properties.trackingId", notes):
        stage = text_of(properties.get("stage")) or text_of(facts.get("status"))
        return Health(bounded_key(rule, tracking), stage, stage.lower() in OVER, title)
    if (health := text_of(properties.get("currentHealthStatus"))) and target:
        over = health.lower() in OVER or text_of(facts.get("status")).lower() == "resolved"
        return Health(bounded_key(rule, "health", target), health, over, title)
    return None


def resources_of(ids: list[Any], labels: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the attributes of each resource that an alert is about; at least one."""
    # A dimension called Instance is a disk or a part of a scale set.
    named = {name: value for name, value in labels.items() if name != "instance"}
    machine = next((labels[name] for name in MACHINES if name in labels), "")
    shared = resource_of({**named, **({HOST: machine} if machine else {})})
    shared |= {"cloud.provider": "azure"}
    found = []
    for one in ids[:RESOURCES_MAX]:
        resource_id = text_of(one).strip().lower()
        match = ARM.fullmatch(resource_id)
        if not match:
            continue
        own = {CLOUD_ID: resource_id, "cloud.account.id": match["subscription"]}
        if attribute := NAMED.get(match["type"] or ""):
            own[attribute] = match["name"]
        found.append(resource_of({**shared, **own}))
    return found or [shared]


def summary_of(rule_name: str, description: str, key: str) -> str:
    """Return one line: the rule, and what its author says of it."""
    words = [one for one in (rule_name, description) if one]
    return " ".join(": ".join(words).split())[:SUMMARY_MAX] or f"alert {key}"
