"""What is fuzzed: every registered parser, the declared mapping, and the bridge's readers of headers and signatures.

A target takes one example and says what became of it; whatever it raises is a finding. Work is counted in calls of
functions, and not in seconds: a busy machine finds nothing that is not there.
"""

import base64
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Self

from hypothesis import strategies as st

from services.bridge.domain import read_secrets
from services.bridge.kept import NAME_MAX, PAIRS_MAX, TOTAL_MAX, VALUE_MAX, kept_headers
from services.bridge.senders import doors, events, shared, signed, sns
from services.bridge.senders.certificates import Certificates, is_allowed
from services.bridge.senders.proof import Knock, Proof, UnavailableError, Verifier
from services.ingest.mapping import entry_of
from services.ingest.parsers import parser_of
from services.ingest.sources import PARSERS, Parser
from services.mesh import policy
from tests.fuzz.bodies import CONTENT_TYPES, HEADERS, WORDS, bodies, payloads_of
from tests.ingest.house import delivery
from tests.ingest.sources import test_declared

ACCEPTED: Final = "accepted"
REFUSED: Final = "refused"
# A body of nothing costs something, and each byte of another so much at most; a batch is at most a thousand signals.
CALLS_BASE: Final = 30_000
CALLS_A_BYTE: Final = 60
# All that signals may hold together, beside the body: what a body says is told in several places, each bounded.
OUTPUT_BASE: Final = 200_000
OUTPUT_A_BYTE: Final = 64
NOW: Final = 1_767_225_600.0
# In nobody's test payload: who sends it there would rightly be let in.
SECRET: Final = b"onlytheFuzzerKnowsThisOne0000042"
TOPIC: Final = "arn:aws:sns:eu-west-1:123456789012:alarms"


@dataclass(frozen=True, slots=True)
class Target:
    """A name, what is tried, and how."""

    name: str
    examples: st.SearchStrategy[Any]
    run: Callable[[Any], str]


class Calls:
    """Counts what is called while it is entered."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        """Begin to count."""
        self._before = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        sys.setprofile(self._before)

    def _see(self, _: FrameType, event: str, __: object) -> None:
        self.count += event in ("call", "c_call")


def read(parse: Parser, body: bytes, content_type: str = "application/json", headers: Mapping[str, str] = {}) -> str:
    """Parse a body as ingest does: signals or a typed refusal, within every bound of the IDL, for bounded work."""
    sent = delivery(body, "fuzz")
    sent.content_type = content_type
    sent.headers.update(headers)
    with Calls() as calls:
        entry = entry_of(sent, parse)
    assert calls.count <= CALLS_BASE + CALLS_A_BYTE * len(body), f"{calls.count} calls for {len(body)} bytes"
    told = entry.ByteSize() - len(body)
    assert told <= OUTPUT_BASE + OUTPUT_A_BYTE * len(body), f"{told} bytes of {len(body)}"
    assert bool(entry.errors) is not bool(entry.signals), "neither signals nor a refusal, or both"
    assert not policy.violations(entry), f"out of bounds: {policy.violations(entry)}"
    for signal in entry.signals:
        assert signal.dedup_key, "a signal without a key"
        assert signal.summary, "a signal without a summary"
        assert all(link.url.lower().startswith(("http://", "https://")) for link in signal.links), "a link elsewhere"
    return REFUSED if entry.errors else ACCEPTED


def parsers() -> list[Target]:
    """Return a target a registered parser, and one for the declared mapping."""
    headers = st.dictionaries(
        st.sampled_from(HEADERS), st.sampled_from(WORDS) | st.text("a%{$~ 1", max_size=20), max_size=5
    )
    extras: st.SearchStrategy[tuple[str, dict[str, str]]] = st.tuples(
        st.sampled_from(CONTENT_TYPES), headers
    ) | st.builds(lambda: ("application/json", dict[str, str]()))
    named = {**PARSERS, "declared": parser_of(test_declared.source({**test_declared.MAPPING, "items": ""}))}

    def target(name: str, parse: Parser) -> Target:
        examples = st.tuples(bodies(payloads_of(name)), extras)
        return Target(f"parser {name}", examples, lambda one: read(parse, one[0], *one[1]))

    return [target(name, parse) for name, parse in sorted(named.items())]


class Given:
    """Headers as a listener gives them: each with all its values."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def getlist(self, key: str) -> list[str]:
        """Return every value of a header."""
        return [value for name, value in self._pairs if name == key]


def finished(asked: Coroutine[Any, Any, Proof | None]) -> Proof | None:
    """Return what a verifier answers that waits for nothing."""
    try:
        asked.send(None)
    except StopIteration as stopped:
        answer: Proof | None = stopped.value
        return answer
    raise AssertionError("a verifier waits for something")


async def nowhere(url: str) -> bytes:
    """Answer for the host of certificates: only SNS's own may be asked."""
    assert is_allowed(url, TOPIC), f"a certificate is fetched from {url}"
    raise ValueError("there is none")


VERIFIERS: Final[Mapping[str, Verifier]] = {
    "bearer": shared.Bearer(),
    "basic": shared.Basic(),
    "header": shared.Header("x-secret"),
    "url token": shared.UrlToken("x-secret"),
    "github": signed.GITHUB,
    "pagerduty": signed.PAGERDUTY,
    "sentry": signed.SENTRY,
    "slack": signed.Slack(),
    "grafana": signed.Grafana(time_header="x-time"),
    "grafana untimed": signed.Grafana(),
    "standard": signed.Standard(),
    "splunk": signed.Splunk(),
    "routing key": events.RoutingKey(),
    "sns": sns.Sns(frozenset({TOPIC}), certificates=Certificates(nowhere)),
}
OF_VERIFIERS: Final = (
    "authorization",
    "x-secret",
    "x-time",
    "x-hub-signature-256",
    "x-pagerduty-signature",
    "sentry-hook-signature",
    "x-slack-signature",
    "x-slack-request-timestamp",
    "x-grafana-alerting-signature",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "x-sfx-signature",
)
LIKELY: Final = (
    "Bearer ",
    "Basic Og==",
    "sha256=",
    "v1=",
    "v0=",
    "v1,",
    "v1, v1, v1,",
    "1767225600",
    "9" * 13,
    "\u0661\u0662",
    "x" * 9000,
    "\xff",
    ",".join(["v1=" + "0" * 64] * 17),
)


def verifiers() -> list[Target]:
    """Return a target a scheme: whoever does not know the secret is refused, whatever is sent."""
    values = st.sampled_from(LIKELY) | st.text(max_size=40)
    headers = st.lists(st.tuples(st.sampled_from(OF_VERIFIERS), values), max_size=6)
    good = [
        {"routing_key": "r", "event_action": "trigger", "payload": {}},
        *payloads_of("sns"),
        *payloads_of("pagerduty-events"),
    ]
    examples = st.tuples(headers, bodies(good) | st.binary(max_size=64), st.text(max_size=40))

    def target(name: str, verifier: Verifier) -> Target:
        def run(one: tuple[list[tuple[str, str]], bytes, str]) -> str:
            pairs, body, token = one
            with Calls() as calls:
                try:
                    proof = finished(verifier.verify(Knock(Given(pairs), body, NOW, token=token), [SECRET]))
                except UnavailableError:
                    return REFUSED
            assert calls.count <= CALLS_BASE + CALLS_A_BYTE * len(body), f"{calls.count} calls for {len(body)} bytes"
            assert proof is None, "a stranger is let in"
            return REFUSED

        return Target(f"verifier {name}", examples, run)

    return [target(name, verifier) for name, verifier in VERIFIERS.items()]


def signers() -> list[Target]:
    """Return a target for those who know the secret: they are let in, whatever the body."""

    def run(body: bytes) -> str:
        time = b"1767225600"
        key = signed.mac
        pairs = {
            "github": {"x-hub-signature-256": "sha256=" + key(SECRET, body).hex()},
            "pagerduty": {"x-pagerduty-signature": "v1=00, v1=" + key(SECRET, body).hex()},
            "sentry": {"sentry-hook-signature": key(SECRET, body).hex()},
            "slack": {
                "x-slack-request-timestamp": time.decode(),
                "x-slack-signature": "v0=" + key(SECRET, b"v0:", time, b":", body).hex(),
            },
            "grafana": {"x-time": time.decode(), "x-grafana-alerting-signature": key(SECRET, time, b":", body).hex()},
            "splunk": {"x-sfx-signature": base64.b64encode(key(SECRET, body)).decode()},
            "standard": {
                "webhook-id": "i",
                "webhook-timestamp": time.decode(),
                "webhook-signature": "v1,"
                + base64.b64encode(key(signed.standard_key(SECRET), b"i.", time, b".", body)).decode(),
            },
        }
        for name, headers in pairs.items():
            knock = Knock(Given(list(headers.items())), body, NOW)
            assert finished(VERIFIERS[name].verify(knock, [b"another", SECRET] if name != "standard" else [SECRET])), (
                name
            )
        return ACCEPTED

    return [Target("signers", st.binary(max_size=300), run)]


def readers() -> list[Target]:
    """Return targets for what the bridge reads before it knows whom it has."""

    def headers(one: dict[str, str]) -> str:
        kept = kept_headers(one)
        assert len(kept) <= PAIRS_MAX
        assert sum(len(name) + len(value) for name, value in kept.items()) <= TOTAL_MAX
        assert all(
            len(name) <= NAME_MAX and len(value) <= VALUE_MAX and value.isascii() for name, value in kept.items()
        )
        assert not {"authorization", "x-secret", "cookie"} & kept.keys()
        return ACCEPTED if kept else REFUSED

    def envelope(body: bytes) -> str:
        try:
            sns.signed_text(sns.envelope_of(body))
        except (ValueError, KeyError):
            return REFUSED
        return ACCEPTED

    def event(body: bytes) -> str:
        found = events.errors_of(body)
        assert all(isinstance(one, str) and one for one in found)
        assert len(found) <= OUTPUT_A_BYTE
        shown = events.event_of(body).get("routing_key")
        if isinstance(shown, str) and shown:
            assert len(events.masked(body, [shown.encode("utf-8", "surrogatepass")])) == len(body)
        return REFUSED if found else ACCEPTED

    def secrets(text: str) -> str:
        found = read_secrets(text)
        assert all(found)
        for reader in (doors.read_standard, doors.read_passwords, doors.read_tokens):
            try:
                reader(text)
            except ValueError:
                continue
        return ACCEPTED if found else REFUSED

    names = st.sampled_from((*HEADERS, "Authorization", "X-Secret", "Cookie", "ce-" + "x" * 80)) | st.text(max_size=12)
    values = st.sampled_from(("x" * 1025, "\x00", "é", "a b")) | st.text(max_size=60)
    return [
        Target("reader of headers", st.dictionaries(names, values, max_size=50), headers),
        Target("reader of envelopes", bodies(payloads_of("sns")), envelope),
        Target("reader of events", bodies(payloads_of("pagerduty-events")), event),
        Target("reader of secrets", st.text("whsec_=:,\n\r #abc\xff/+", max_size=80) | st.text(max_size=80), secrets),
    ]


def targets() -> list[Target]:
    """Return everything that is fuzzed."""
    return [*parsers(), *verifiers(), *signers(), *readers()]
