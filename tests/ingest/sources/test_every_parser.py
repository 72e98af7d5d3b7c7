"""What strangers do to any body, tried on every parser: lenient on what does not matter, and never fooled."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1.signal_pb2 import Signal
from services.ingest.sources import PARSERS
from services.ingest.sources.reading import is_placeholder
from tests.ingest.sources.mutants import Path, check, paths
from tests.ingest.sources.samples import CONTENT_TYPES, SAMPLES, TEXT, URL

EVERY = sorted(PARSERS)
# Left by templates that were not filled in, and by languages that spell nothing in letters.
UNFILLED = [
    "null",
    "<no value>",
    "[no value]",
    "None",
    "$ALERT_ID",
    "$TAGS[service]",
    "${resource.name}",
    "{{ $labels.x }}",
    "{EVENT.TAGSJSON}",
]
BAD_URLS = [
    "javascript:alert(1)",
    "?orgId=1",
    "www.example.org",
    "",
    "null",
    f"https://example.org/{'x' * 3000}",
    "h p",
]
# Without these there is no alert, nothing that tells it from others, or nothing that says how it stands.
NEEDED = {
    "alertmanager": ["alerts", "alerts.0"],
    "azure-monitor": ["data", "data.essentials"],
    "cloudevents": ["data"],
    "elastic": ["alert"],
    "gcp-monitoring": ["incident"],
    "github": ["deployment_status", "deployment", "repository"],
    "grafana": ["alerts", "alerts.0"],
    "kubernetes": ["involvedObject"],
    "opsgenie": ["alert"],
    "pagerduty": ["event", "event.data"],
    "sentry": ["data", "data.event"],
}


def parsed(name: str, body: bytes) -> pb.StreamEntry:
    """Parse with the content type its sender uses."""
    return check(name, body, CONTENT_TYPES.get(name, "application/json"))


def good(name: str) -> Signal:
    """Return what the untouched sample says."""
    return parsed(name, json.dumps(SAMPLES[name]).encode()).signals[0]


def changed(name: str, path: Path, value: Any) -> bytes:
    """Return the sample with another value at a path."""
    body = copy.deepcopy(SAMPLES[name])
    holder = body
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return json.dumps(body).encode()


def leaves(name: str, kind: type | tuple[type, ...]) -> Iterator[Path]:
    """Yield the paths of the sample's values of a kind."""
    for path in paths(SAMPLES[name]):
        value = SAMPLES[name]
        for step in path:
            value = value[step]
        if path and isinstance(value, kind):
            yield path


def same(entry: pb.StreamEntry, name: str) -> Signal:
    """Return the one signal of an entry: key, status, severity and times are those of the untouched sample."""
    (signal,), before = entry.signals, good(name)
    told = [(one.dedup_key, one.event_key, one.status, one.severity, one.severity_raw) for one in (signal, before)]
    assert told[0] == told[1]
    assert (signal.start_time, signal.end_time) == (before.start_time, before.end_time)
    assert dict(signal.resource) == dict(before.resource)
    return signal


def words(signal: Signal) -> Iterator[str]:
    """Yield what could become a key, a label, a target or a link."""
    yield signal.dedup_key
    yield from signal.labels.values()
    yield from signal.resource.values()
    yield from (target.key.partition(":")[2] for target in signal.targets)
    yield from (link.url for link in signal.links)


@pytest.mark.parametrize("name", EVERY)
def test_every_parser_has_a_sample(name: str) -> None:
    """And it is understood whole: nothing of it had to be noted but what the sender never says."""
    signal = good(name)
    assert TEXT in signal.summary or name == "github"
    assert signal.status
    assert bool(signal.links) is (URL in json.dumps(SAMPLES[name]))
    assert len(signal.warnings) <= (name in ("elastic", "github"))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("way", ["mark", "commas", "text", "duplicates", "space"])
def test_json_that_is_not_quite_json(name: str, way: str) -> None:
    """A byte order mark, trailing commas, JSON in a JSON string, a name told twice: it says the same as before."""
    text = json.dumps(SAMPLES[name])
    body = {
        "mark": "\ufeff" + text,
        "commas": json.dumps(SAMPLES[name], indent=1).replace("\n", ",\n").replace("{,", "{").replace("[,", "["),
        "text": json.dumps(text),
        "duplicates": "".join(("{", json.dumps(next(iter(SAMPLES[name]))), ': "else", ', text[1:])),
        "space": f" \r\n\t{text}\n\n",
    }[way]
    if way == "commas":
        body = body.replace(",,", ",").rstrip(",\n")
    same(parsed(name, body.encode()), name)


@pytest.mark.parametrize("name", EVERY)
def test_raw_control_characters_and_other_encodings(name: str) -> None:
    """Nobody escaped the text: it is kept, on one line where one is wanted, without what no database holds."""
    raw = json.dumps(SAMPLES[name]).encode().replace(TEXT.encode(), b"a\nb\x01\tc\xff\x00")
    (signal,) = parsed(name, raw).signals
    assert signal.status == good(name).status
    assert "\n" not in signal.summary
    assert "\x00" not in str(signal)


@pytest.mark.parametrize("name", EVERY)
def test_integers_beyond_what_a_float_holds(name: str) -> None:
    """They stay exact, wherever they stand; of two long ids none becomes the other."""
    found = set()
    for number in (2**53 + 1, 2**53 + 2, 2**64 + 1, 2**64 + 2, 10**60 + 1):
        for path in leaves(name, str):
            for signal in parsed(name, changed(name, path, number)).signals:
                found.add((path, signal.dedup_key))
    keyed = {path for path, key in found if str(2**64 + 1) in key}
    for path in keyed:
        assert len({key for at, key in found if at == path}) == 5, path


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("word", UNFILLED)
def test_what_was_not_filled_in_is_absent(name: str, word: str) -> None:
    """No key, label, target or link is made of it, wherever it stands."""
    for path in leaves(name, str):
        for signal in parsed(name, changed(name, path, word)).signals:
            assert word not in list(words(signal)), path
            assert not any(is_placeholder(one) for one in words(signal)), path


@pytest.mark.parametrize("name", EVERY)
def test_one_bad_link_costs_itself_only(name: str) -> None:
    """The alert stays what it was; the link is left out, and named if it is a text at all."""
    places = [path for path in leaves(name, str) if good_value(name, path) == URL]
    for path in places:
        for bad in (*BAD_URLS, None, 7, {"a": 1}, ["x"]):
            signal = same(parsed(name, changed(name, path, bad)), name)
            assert bad not in [link.url for link in signal.links]
            if isinstance(bad, str) and bad not in ("", "null"):
                assert signal.warnings, (path, bad)


def good_value(name: str, path: Path) -> Any:
    """Return what stands at a path of the sample."""
    value = SAMPLES[name]
    for step in path:
        value = value[step]
    return value


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [None, [], {}, "", "x", 5, [None], [[]]], ids=str)
def test_a_list_or_object_of_another_kind_costs_itself_only(name: str, value: Any) -> None:
    """Null tags, links as a text, a number for labels: only what tells the alert from others is needed."""
    for path in leaves(name, (list, dict)):
        entry = parsed(name, changed(name, path, value))
        if ".".join(map(str, path)) not in NEEDED.get(name, []):
            assert entry.signals, (path, entry.errors)
            assert entry.signals[0].status == good(name).status, path


@pytest.mark.parametrize("bad", [None, 5, "x", [], {}])
@pytest.mark.parametrize(
    "name",
    ["alertmanager", "datadog", "generic", "grafana", "newrelic", "opsgenie", "pagerduty-events", "sns", "zabbix"],
)
def test_one_bad_alert_among_good_ones_costs_itself_only(name: str, bad: Any) -> None:
    """Each is a signal of its own that points to its place in the body; the bad one is left out with its reason."""
    sample = SAMPLES[name]
    if "alerts" in sample:
        shared: dict[str, Any] = {"groupLabels": {}, "commonLabels": {}}
        body: Any = sample | shared | {"alerts": [sample["alerts"][0], bad, sample["alerts"][0]]}
    elif name == "sns":
        body = {"Records": [{"Sns": sample}, {"Sns": bad if isinstance(bad, dict) else {"Type": "x"}}, {"Sns": sample}]}
    else:
        body = [sample, bad, sample]
    entry = parsed(name, json.dumps(body).encode())
    assert [signal.dedup_key for signal in entry.signals] == [good(name).dedup_key] * 2
    assert len({signal.body_pointer for signal in entry.signals}) == 2
    (left_out,) = entry.left_out
    assert left_out.index == 1
    assert left_out.error.description
    assert all("left out" in " ".join(signal.warnings) for signal in entry.signals)
