"""What README and docs/senders.md say of senders is what the code does: the table, the templates, the example."""

import json
import re
import time
from pathlib import Path
from types import ModuleType

import pytest

from opsmesh.config.v1 import sources_pb2
from services.bridge.limits import Limits
from services.ingest.parsers import parser_of, problems
from services.ingest.signal import DeliveryFacts, ParsedSignal, Severity, Status, Unreadable
from services.ingest.sources import PARSERS
from services.mesh.config import load_yaml
from tests.ingest.house import ROOT

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "senders.md").read_text()
SHIPPED = load_yaml(ROOT / "deploy" / "sources.yaml", sources_pb2.Sources).sources
ROW = re.compile(r"^\| ([a-z-]+) \| `([a-z_]+)` \| ([0-9]{3}) \|$", re.MULTILINE)
# What a sender puts into its template, by the names that the template has; after each sender's documentation.
DATADOG = {
    "$ID": "8002",
    "$ALERT_CYCLE_KEY": "91201",
    "$ALERT_ID": "4711",
    "$ALERT_TRANSITION": "Triggered",
    "$AGGREG_KEY": "9bd4ac31",
    "$ALERT_SCOPE": "env:prod,host:web-1",
    "$ALERT_PRIORITY": "P1",
    "$TAGS": "env:prod,service:checkout",
    "$HOSTNAME": "web-1",
    "$LINK": "https://app.datadoghq.com/event/event?id=8002",
    "$LAST_UPDATED": "1767225600000",
    "$ALERT_TITLE": "Errors in checkout",
    "$EVENT_TITLE": "[P1] [Triggered] Errors in checkout",
    "$TEXT_ONLY_MSG": "too many",
}
DYNATRACE = {
    "{PID}": "-7713",
    "{ProblemID}": "P-2603",
    "{State}": "OPEN",
    "{ProblemTitle}": "Failure rate is up",
    "{ProblemSeverity}": "ERROR",
    "{ProblemImpact}": "SERVICE",
    "{ProblemURL}": "https://abc.live.dynatrace.com/#problems/problemdetails;pid=-7713",
    "{Tags}": "env:prod, team:shop",
    "{ImpactedEntities}": '[{"type": "SERVICE", "name": "checkout", "entity": "SERVICE-1"}]',
    "{ProblemDetailsJSON}": '{"startTime": 1767225600000, "endTime": -1, "severityLevel": "ERROR"}',
}
ELASTIC = {
    "{{rule.id}}": "2f6ad6f0-8c0e-4b8e-a2cc-0d8a6a5b7d11",
    "{{rule.name}}": "checkout is slow",
    "{{rule.url}}": "https://kibana.example.org/app/rules/rule/2f6ad6f0",
    "{{date}}": "2026-01-01T00:00:00.000Z",
    "{{alert.id}}": "checkout",
    "{{alert.uuid}}": "5b6237aa-cf8c-4b2a-8a3b-3a6c0e3f5a01",
    "{{alert.actionGroup}}": "threshold met",
    "{{context.reason}}": "p99 is 4 s",
    "{{kibanaBaseUrl}}": "https://kibana.example.org",
}


def section(name: str) -> str:
    """Return the part of the page under a heading."""
    (found,) = re.findall(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def fenced(text: str, kind: str) -> str:
    """Return the one block of a kind."""
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return str(found)


def rendered(source: str, values: dict[str, str]) -> ParsedSignal:
    """Fill a template of the page in, all of it, and parse it."""
    text = fenced(section(source), "json")
    # The longest names first: one may begin with another.
    for name in sorted(values, key=len, reverse=True):
        assert name in text
        text = text.replace(name, values[name])
    assert not re.search(r"\$[A-Z]|\{\{|\{[A-Z]", text)
    (signal,) = PARSERS[source](text.encode(), DeliveryFacts(source, "application/json"))
    return signal


def test_the_table_says_what_is_configured() -> None:
    """Every shipped source with the scheme that it has, and the status that its sender comes again after."""
    limits = Limits(SHIPPED, 0, time.monotonic)
    wanted = [(one.source, one.WhichOneof("auth"), str(limits.status(one.source))) for one in SHIPPED]
    assert ROW.findall(PAGE) == wanted
    assert {one.source for one in SHIPPED} == set(PARSERS)


@pytest.mark.parametrize("source", [one.source for one in SHIPPED])
def test_every_source_has_its_entry(source: str) -> None:
    """An operator finds each by its name, with something to do."""
    assert len(section(source)) > 100


@pytest.mark.parametrize(
    ("source", "values", "severity", "key"),
    [
        ("datadog", DATADOG, Severity.CRITICAL, "91201"),
        ("dynatrace", DYNATRACE, Severity.ERROR, "P-2603"),
        ("elastic", ELASTIC, Severity.UNSPECIFIED, "5b6237aa-cf8c-4b2a-8a3b-3a6c0e3f5a01"),
    ],
)
def test_the_templates_say_all_that_is_needed(
    source: str, values: dict[str, str], severity: Severity, key: str
) -> None:
    """What a sender makes of the template we ask for has a key, a status and a time, and nothing unexplained."""
    signal = rendered(source, values)
    assert signal.status is Status.FIRING
    assert signal.severity is severity
    assert key in signal.dedup_key
    assert signal.event_time == 1767225600000000000
    assert [one for one in signal.warnings if "severity" not in one.lower()] == []


def test_the_connector_s_body_is_that_of_the_configuration() -> None:
    """Two places tell it, and both tell the same."""
    comments = [
        line.strip().removeprefix("#").strip() for line in (ROOT / "deploy/sources.yaml").read_text().splitlines()
    ]
    assert "".join(fenced(section("elastic"), "json").split()).strip("{}") in "".join("".join(comments).split())


def test_the_mapping_reads_the_body_below_it(tmp_path: Path) -> None:
    """The example of an in-house sender is one: firing, critical, on the service it names, at its own time of day."""
    (tmp_path / "sources.yaml").write_text(fenced(section("In-house senders"), "yaml"))
    (source,) = load_yaml(tmp_path / "sources.yaml", sources_pb2.Sources).sources
    assert not list(problems(source))
    (signal,) = parser_of(source)(fenced(section("In-house senders"), "json").encode(), DeliveryFacts("billing"))
    assert (signal.status, signal.severity) == (Status.FIRING, Severity.CRITICAL)
    assert signal.summary == "the queue has 900 entries"
    assert [one.key for one in signal.targets] == ["svc:production/billing", "host:q-1"]
    assert signal.start_time == 1772355600000000000
    assert signal.warnings == ()


def beacon() -> ModuleType:
    """Return the parser of README's example, as a module."""
    part = README[README.index("## Add a sender") :]
    made = ModuleType("beacon")
    exec(compile(fenced(part[: part.index("## Add a rule")], "python"), "README.md", "exec"), made.__dict__)  # noqa: S102  our own README
    return made


def test_the_example_of_a_parser_parses() -> None:
    """Firing and resolved have one key; what has no identity is refused with the field that is missing."""
    body = {"check": "http", "host": "web-1", "service": "shop", "phase": "DOWN", "level": "critical", "at": 1767225600}
    (down,) = beacon().parse(json.dumps(body).encode(), DeliveryFacts("beacon"))
    (up,) = beacon().parse(json.dumps([body | {"phase": "UP", "at": 1767225660}]).encode(), DeliveryFacts("beacon"))
    assert (down.status, up.status) == (Status.FIRING, Status.RESOLVED)
    assert down.dedup_key == up.dedup_key
    assert down.event_time < up.event_time
    assert down.resource == {"host.name": "web-1", "service.name": "shop"}
    with pytest.raises(Unreadable) as caught:
        beacon().parse(b'{"phase": "DOWN"}', DeliveryFacts("beacon"))
    assert [one.field for one in caught.value.errors] == ["check"]


def test_the_example_of_an_entry_is_one(tmp_path: Path) -> None:
    """It is within the bounds of the IDL; only the parser is not among those that ship."""
    part = README[README.index("## Add a sender") :]
    (tmp_path / "sources.yaml").write_text(fenced(part[: part.index("## Add a rule")], "yaml"))
    (source,) = load_yaml(tmp_path / "sources.yaml", sources_pb2.Sources).sources
    ((field, _),) = problems(source)
    assert (source.WhichOneof("auth"), field) == ("hmac_standard", "source")
