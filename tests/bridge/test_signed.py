"""Signatures with a shared secret: published vectors, our own, and what somebody without the secret would try."""

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.datastructures import Headers

from services.bridge.senders import shared, signed
from services.bridge.senders.proof import VALUE_MAX, WINDOW_SECONDS, Knock, Proof, Verifier, in_time
from services.local.signing import HEADERS, proof_of

NOW = 1_700_000_000
SECRET = base64.b64encode(b"a secret of thirty-two bytes ...").decode()
OTHER = base64.b64encode(b"another secret of 32 bytes .....").decode()
BODY = b'{"event": {"id": "1", "name": "caf\xc3\xa9"}}\n'
TIMED = signed.Grafana(time_header="x-grafana-alerting-timestamp")
SCHEMES: dict[str, Verifier] = {
    "hmac-github": signed.GITHUB,
    "hmac-pagerduty": signed.PAGERDUTY,
    "hmac-sentry": signed.SENTRY,
    "hmac-grafana": signed.Grafana(),
    "hmac-slack": signed.Slack(),
    "hmac-standard": signed.Standard(),
    "hmac-splunk": signed.Splunk(),
    "hmac-grafana timed": TIMED,
}
WITH_TIME = {"hmac-slack", "hmac-standard", "hmac-grafana timed"}


async def prove(
    verifier: Verifier,
    headers: Mapping[str, str] | list[tuple[str, str]],
    body: bytes = BODY,
    secrets: tuple[str, ...] = (SECRET,),
    now: float = NOW,
) -> Proof | None:
    """Knock with these headers, as a request brings them."""
    pairs = headers if isinstance(headers, list) else list(headers.items())
    raw = [(name.lower().encode(), value.encode("latin-1", errors="replace")) for name, value in pairs]
    return await verifier.verify(Knock(Headers(raw=raw), body, now), [one.encode() for one in secrets])


@pytest.fixture
def sign(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Give what signs as a sender of a scheme does, at a moment."""

    def made(scheme: str, body: bytes = BODY, secret: str = SECRET, at: int = NOW) -> dict[str, str]:
        monkeypatch.setattr(time, "time", lambda: float(at))
        auth, _, timed = scheme.partition(" ")
        hook = {"auth": auth, "header": HEADERS[auth]}
        return proof_of(hook | ({"timestamp_header": "X-Grafana-Alerting-Timestamp"} if timed else {}), secret, body)

    return made


Sign = Callable[..., dict[str, str]]


async def test_the_vectors_that_senders_publish() -> None:
    """GitHub's, Slack's and Standard Webhooks' documentation: what they say is right is right."""
    github = {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
    assert await prove(signed.GITHUB, github, b"Hello, World!", ("It's a Secret to Everybody",))
    standard = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    secret = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",)
    assert await prove(signed.Standard(), standard, b'{"test": 2432232314}', secret, 1614265330)
    slack = {
        "X-Slack-Request-Timestamp": "1531420618",
        "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    form = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name="
        b"foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2F"
        b"hooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015."
        b"47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    assert await prove(signed.Slack(), slack, form, ("8f742231b10e8888abcd99yyyzzz85a5",), 1531420618)


async def test_vectors_of_our_own() -> None:
    """PagerDuty, Sentry, Grafana and Splunk as their documentation says, computed by the standard library."""

    def hexadecimal(content: bytes) -> str:
        return hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()

    assert await prove(signed.PAGERDUTY, {"X-PagerDuty-Signature": f"v1={hexadecimal(BODY)}"})
    assert await prove(signed.SENTRY, {"Sentry-Hook-Signature": hexadecimal(BODY)})
    splunk = base64.b64encode(bytes.fromhex(hexadecimal(BODY))).decode()
    assert await prove(signed.Splunk(), {"X-SFX-Signature": splunk})
    assert not await prove(signed.Splunk(), {"X-SFX-Signature": hexadecimal(BODY)})
    assert await prove(signed.Grafana(), {"X-Grafana-Alerting-Signature": hexadecimal(BODY)})
    assert await prove(signed.Grafana("x-other"), {"X-Other": hexadecimal(BODY)})
    timed = {
        "X-Grafana-Alerting-Signature": hexadecimal(str(NOW).encode() + b":" + BODY),
        "X-Grafana-Alerting-Timestamp": str(NOW),
    }
    assert await prove(TIMED, timed)
    # Who leaves the time out does not get around it.
    assert not await prove(TIMED, {"X-Grafana-Alerting-Signature": hexadecimal(BODY)})


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_only_these_bytes_with_this_secret(scheme: str, sign: Sign) -> None:
    """Right ones open; another body, secret, a missing, doubled, cut or changed header do not."""
    verifier, headers = SCHEMES[scheme], sign(scheme)
    assert await prove(verifier, headers)
    assert not await prove(verifier, headers, BODY + b" ")
    assert not await prove(verifier, headers, BODY[:-1])
    assert not await prove(verifier, headers, b"")
    assert not await prove(verifier, headers, secrets=(OTHER,))
    assert not await prove(verifier, headers, secrets=())
    assert not await prove(verifier, {})
    for name, value in headers.items():
        assert not await prove(verifier, {key: one for key, one in headers.items() if key != name})
        assert not await prove(verifier, [*headers.items(), (name, value)])
        assert not await prove(verifier, [*headers.items(), (name, "x")])
        for wrong in ("", " ", value[:-1], value + "0", value.upper() + "!", "\xff" * 70, "x" * 100_000, "v1=", "="):
            assert not await prove(verifier, headers | {name: wrong})


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_an_old_and_a_new_secret_open_while_they_rotate(scheme: str, sign: Sign) -> None:
    """Each of several secrets counts, in any order; one taken away does no longer."""
    verifier = SCHEMES[scheme]
    for secret in (SECRET, OTHER):
        headers = sign(scheme, secret=secret)
        assert await prove(verifier, headers, secrets=(SECRET, OTHER))
        assert await prove(verifier, headers, secrets=(OTHER, SECRET))
    assert not await prove(verifier, sign(scheme, secret=OTHER), secrets=(SECRET,))


@pytest.mark.parametrize("scheme", sorted(WITH_TIME))
async def test_the_window_has_two_sides(scheme: str, sign: Sign) -> None:
    """Five minutes too late and too early are the last that open; the time is part of what is signed."""
    verifier = SCHEMES[scheme]
    for skew in (-WINDOW_SECONDS, 0, WINDOW_SECONDS):
        assert await prove(verifier, sign(scheme, at=NOW + skew))
    for skew in (-WINDOW_SECONDS - 1, WINDOW_SECONDS + 1, -NOW, NOW):
        headers = sign(scheme, at=NOW + skew)
        assert not await prove(verifier, headers)
        (name,) = [one for one in headers if one.lower().endswith("timestamp")]
        assert not await prove(verifier, headers | {name: str(NOW)})


@pytest.mark.parametrize("text", ["", "-1", "+1700000000", " 1700000000", "1.7e9", "1700000000.0", "1_700_000_000"])
def test_a_time_is_plain_digits(text: str) -> None:
    """What int() or float() would take beyond digits is no time."""
    assert not in_time(text, NOW)
    assert in_time("1700000000", NOW)
    assert not in_time("\u0661\u0667\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660", NOW)
    assert not in_time("9" * 5000, NOW)


async def test_lists_of_signatures(sign: Sign) -> None:
    """PagerDuty separates by commas, Standard Webhooks by spaces; any of them counts, other versions never."""
    (name, right), *_ = sign("hmac-pagerduty").items()
    wrong = "v1=" + "0" * 64
    for several in (f"{wrong},{right}", f"{right},{wrong}", f"{wrong}, {right}", f"v2={right[3:]},{right}"):
        assert await prove(signed.PAGERDUTY, {name: several})
    for several in (f"v2={right[3:]}", f"{wrong},{wrong}", f"{wrong} {right}", ",".join([wrong] * 16 + [right]), ",,"):
        assert not await prove(signed.PAGERDUTY, {name: several})
    headers = sign("hmac-standard")
    right = headers["webhook-signature"]
    assert await prove(signed.Standard(), headers | {"webhook-signature": f"v1a,AAAA {right} v2,x"})
    for several in (right.replace("v1,", "v1a,"), right[3:], f"{right},{right}", "v1", "v1, ", f"x{right}"):
        assert not await prove(signed.Standard(), headers | {"webhook-signature": several})


async def test_what_marks_a_repetition(sign: Sign) -> None:
    """The same signed content again is the same request, whatever unsigned id or new try it comes with."""
    for scheme, verifier in SCHEMES.items():
        first = await prove(verifier, sign(scheme))
        again = await prove(verifier, {**sign(scheme), "x-github-delivery": "new", "x-webhook-id": "new"})
        other = await prove(verifier, sign(scheme, b"{}"), b"{}")
        assert first
        assert again
        assert other
        assert first.once
        assert first.once != other.once
        # A sender of Standard Webhooks tells its messages apart by a signed id.
        assert (first == again) == (scheme != "hmac-standard")
    headers, at = sign("hmac-standard"), NOW + 60
    text = Webhook(SECRET).sign(headers["webhook-id"], _moment(at), BODY.decode())
    retry = headers | {"webhook-timestamp": str(at), "webhook-signature": text}
    assert await prove(signed.Standard(), headers) == await prove(signed.Standard(), retry)


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@given(body=st.binary(max_size=200), value=st.text(max_size=200), secret=st.binary(min_size=1, max_size=64))
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_no_header_opens_by_chance(scheme: str, body: bytes, value: str, secret: bytes) -> None:
    """Any header texts, bytes and secrets: never a proof, never an exception."""
    key = base64.b64encode(secret).decode()
    names = [
        HEADERS[scheme.split(" ", maxsplit=1)[0]],
        "x-slack-request-timestamp",
        "webhook-id",
        "x-grafana-alerting-timestamp",
    ]
    headers = dict.fromkeys(names, value) | {"webhook-timestamp": str(NOW)}
    assert not await prove(SCHEMES[scheme], headers, body, (key,))


@given(body=st.text(max_size=300), secret=st.binary(min_size=1, max_size=64), skew=st.integers(-600, 600))
async def test_the_same_as_the_reference_implementation(body: str, secret: bytes, skew: int) -> None:
    """What the library of Standard Webhooks signs is right, and it calls right what we do, at the same moments."""
    library = Webhook(secret)
    now = int(time.time())
    at = now + skew
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(at),
        "webhook-signature": library.sign("msg_1", _moment(at), body),
    }
    ours = await prove(signed.Standard(), headers, body.encode(), (base64.b64encode(secret).decode(),), now)
    try:
        library.verify(body, headers, json_parse=False)
        theirs = True
    except WebhookVerificationError:
        theirs = False
    if abs(abs(skew) - WINDOW_SECONDS) > 5:
        assert bool(ours) == theirs


@pytest.mark.parametrize("text", ["whsec_", "", "whsec_ü", "whsec_a", "not base64!"])
def test_a_secret_of_standard_webhooks_is_base64(text: str) -> None:
    """Anything else is told at boot instead of refusing every message later."""
    with pytest.raises(ValueError, match=r"whsec_|empty|ascii|base64"):
        signed.standard_key(text.encode())


async def test_shown_secrets() -> None:
    """Doubled, huge and not quite right headers open no door of bearer, basic and static header."""
    basic = "Basic " + base64.b64encode(SECRET.encode()).decode()
    for verifier, name, right in (
        (shared.Bearer(), "Authorization", f"Bearer {SECRET}"),
        (shared.Basic(), "Authorization", basic),
        (shared.Header("x-token"), "X-Token", SECRET),
    ):
        assert await prove(verifier, {name: right})
        assert await prove(verifier, {name: right}, secrets=(OTHER, SECRET))
        assert not await prove(verifier, [(name, right), (name, right)])
        assert not await prove(verifier, [(name, "x"), (name, right)])
        for wrong in ("", right[:-1], right + "x", right.swapcase(), "\xff\xfe", right + "x" * VALUE_MAX):
            assert not await prove(verifier, {name: wrong})
    assert await prove(shared.Nothing(), {})
