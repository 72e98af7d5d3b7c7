"""Good payloads made bad in every way: whatever is left of one, a parser answers in time and within the bounds."""

import copy
import json
import time
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest.mapping import entry_of
from services.ingest.sources import PARSERS
from services.mesh import policy
from tests.ingest.house import delivery

# Of the processor's time of this thread: a machine that has much else to do makes no parser slow.
SECONDS_MAX = 2.0
ODD: list[Any] = [
    None,
    "",
    "null",
    "$ALERT_ID",
    "{{ x }}",
    "<no value>",
    True,
    -1,
    2**70,
    1e300,
    0.5,
    "x" * 9000,
    "http://" + "y" * 4000,
    "javascript:alert(1)",
    "\x00\ud800",
    "0001-01-01T00:00:00Z",
    "99999-99-99T99:99:99Z",
    [],
    [[]],
    [None, 1, "a:b", ["a"], ["a", "b"], {"key": "a", "value": 1}],
    {},
    {"id": {}, "name": [], "value": None},
    '{"a": ',
    '["a"]',
]
Path = tuple[str | int, ...]


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of everything in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from paths(one, (*path, name))


@st.composite
def mutants(draw: st.DrawFn, payloads: list[Any]) -> bytes:
    """Return a payload with a few things in it replaced or taken away, and sometimes bytes cut, put in or changed."""
    value = copy.deepcopy(draw(st.sampled_from(payloads)))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(sorted(paths(value), key=str)))
        odd = copy.deepcopy(draw(st.sampled_from(ODD)))
        if not path:
            value = odd
            continue
        holder = value
        for step in path[:-1]:
            holder = holder[step]
        if draw(st.booleans()):
            holder[path[-1]] = odd
        else:
            del holder[path[-1]]
    body = json.dumps(value).encode()
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=6)) + body[at + draw(st.integers(0, 8)) :]
    return body


def check(name: str, body: bytes, content_type: str = "application/json") -> pb.StreamEntry:
    """Parse a body as ingest does, and check that what comes out is in time and keeps every bound of the IDL."""
    sent = delivery(body, name)
    sent.content_type = content_type
    began = time.thread_time()
    entry = entry_of(sent, PARSERS[name])
    assert time.thread_time() - began < SECONDS_MAX
    assert bool(entry.errors) is not bool(entry.signals)
    assert not policy.violations(entry)
    for signal in entry.signals:
        assert signal.dedup_key
        assert signal.summary
        assert all(link.url.startswith(("http://", "https://")) for link in signal.links)
    return entry
