"""What the fuzzer found, kept: each of these once did what it must not."""

import json
from typing import Any

import pytest

from services.ingest.mapping import entry_of
from services.ingest.sources import PARSERS
from services.mesh import policy
from tests.fuzz.bodies import ALERTS
from tests.ingest.house import delivery


def entry(parser: str, body: Any) -> Any:
    """Parse a body as ingest does, within the bounds of the IDL."""
    found = entry_of(delivery(json.dumps(body).encode()), PARSERS[parser])
    assert not policy.violations(found)
    return found


@pytest.mark.parametrize("field", ["labels", "annotations"])
def test_the_names_of_a_group_and_of_an_alert_may_be_too_many_together(field: str) -> None:
    """Each alone is bounded; together they were not, and the signal could not be kept."""
    many = {f"k{at}": "x" for at in range(128)}
    common = {"labels": "commonLabels", "annotations": "commonAnnotations"}[field]
    alert = {**ALERTS["alerts"][0], field: many}  # type: ignore[index]
    (signal,) = entry("alertmanager", {**ALERTS, common: {"team": "shop", "own": "x"}, "alerts": [alert]}).signals
    assert len(getattr(signal, field)) == 128
    assert f"{field} has more than 128 entries" in signal.warnings


@pytest.mark.parametrize("url", ["javascript:alert(1)", ["https://ci.example.org"], "ftp://x", "https://a b"])
def test_a_link_of_a_change_is_a_page_or_nothing(url: Any) -> None:
    """It went to people as it came."""
    change = {"kind": "deployment", "service": "shop", "environment": "prod", "url": url}
    (signal,) = entry("change", change).signals
    assert not signal.links
    (signal,) = entry("change", {**change, "url": "https://ci.example.org/7"}).signals
    assert [link.url for link in signal.links] == ["https://ci.example.org/7"]
