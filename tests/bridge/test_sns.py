"""Amazon SNS with a certificate of our own: what is signed, who is asked for certificates, and what is never opened."""

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from structlog.testing import capture_logs

from services.bridge.senders import certificates
from services.bridge.senders.certificates import Certificates, is_allowed
from services.bridge.senders.proof import Knock, Proof, UnavailableError
from services.bridge.senders.sns import Sns, envelope_of, signed_text
from tests.bridge.house import PARSER_OF, MemoryIngest, running, write_config

NOW = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
TOPIC = "arn:aws:sns:eu-west-1:123456789012:alarms"
HOST = "https://sns.eu-west-1.amazonaws.com"
URL = f"{HOST}/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
PASSWORD = b"sns:pass:word"
BASIC = {"authorization": "Basic " + base64.b64encode(PASSWORD).decode()}
KEY = rsa.generate_private_key(65537, 2048)


def certificate(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = KEY, days: int = 1) -> bytes:
    """Return a certificate as PEM that ends after some days."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - timedelta(10), NOW + timedelta(days))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def message(kind: str = "Notification", version: str = "2", at: datetime = NOW, **own: str) -> dict[str, str]:
    """Return a signed message."""
    made = {
        "Type": kind,
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": TOPIC,
        "Message": '{"AlarmName": "caf\u00e9"}\n',
        "Timestamp": f"{at:%Y-%m-%dT%H:%M:%S}.000Z",
        "SignatureVersion": version,
        "SigningCertURL": URL,
    }
    if kind != "Notification":
        made |= {"Token": "t0k3n", "SubscribeURL": f"{HOST}/?Action=ConfirmSubscription&Token=t0k3n"}
    return sign(made | own)


def sign(made: dict[str, str]) -> dict[str, str]:
    """Sign a message as SNS does."""
    digest = hashes.SHA256() if made["SignatureVersion"] == "2" else hashes.SHA1()  # noqa: S303  what SNS 1 is
    signature = KEY.sign(signed_text(made), padding.PKCS1v15(), digest)
    return made | {"Signature": base64.b64encode(signature).decode()}


class Host:
    """Stands in for SNS's host and remembers what it was asked for."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def fetch(self, url: str) -> bytes:
        """Answer."""
        self.asked.append(url)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def host() -> Host:
    """Give a host with the certificate."""
    return Host(certificate())


async def prove(
    host: Host, body: bytes | dict[str, str], *, version_1: bool = False, headers: dict[str, str] | None = None
) -> Proof | None:
    """Knock with the subscription's password, or other headers."""
    verifier = Sns(frozenset({TOPIC}), version_1, Certificates(host.fetch))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    knock = Knock(Headers(BASIC if headers is None else headers), content, NOW.timestamp())
    return await verifier.verify(knock, [PASSWORD])


async def test_what_is_signed_opens(host: Host) -> None:
    """Notifications with and without subject and attributes, and both confirmations; the certificate's URL is asked."""
    for good in (
        message(),
        message(Subject="ALARM: x"),
        message() | {"MessageAttributes": {"a": {"Type": "String", "Value": "b\n"}}, "UnsubscribeURL": "http://x"},
        message() | {"Subject": None},
        message("SubscriptionConfirmation"),
        message("UnsubscribeConfirmation"),
        message(at=NOW - timedelta(hours=1)),
        message(at=NOW + timedelta(hours=1)),
    ):
        assert await prove(host, json.dumps(good).encode())
    assert set(host.asked) == {URL}


def _changed(**own: str) -> Callable[[], dict[str, str]]:
    return lambda: message() | own


FORGED: dict[str, Callable[[], dict[str, str] | bytes]] = {
    "another message": _changed(Message="x"),
    "another id": _changed(MessageId="x"),
    "a subject that was not signed": _changed(Subject="x"),
    "another signature": _changed(Signature=base64.b64encode(b"x" * 256).decode()),
    "an empty signature": _changed(Signature=""),
    "the other version": _changed(SignatureVersion="1"),
    "a notification as a confirmation": lambda: message() | {"Type": "SubscriptionConfirmation", "SubscribeURL": "x"},
    "a confirmation's URL": lambda: message("SubscriptionConfirmation") | {"SubscribeURL": "https://evil.example"},
    "an unknown key": _changed(Records="x"),
    "a key twice": lambda: json.dumps(message()).replace("{", '{"Message": "evil", ', 1).encode(),
    "a line feed outside the message": lambda: sign(message() | {"Subject": "a\nTimestamp\nb"}),
    "other fields in the same signed text": lambda: (
        message(Message="a\nMessageId\nb", MessageId="22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324")
        | {"Message": "a", "MessageId": "b\nMessageId\n22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324"}
    ),
}
UNASKED: dict[str, Callable[[], dict[str, str] | bytes]] = {
    "another topic": lambda: message(TopicArn=TOPIC + "2"),
    "the topic of another account": lambda: message(TopicArn=TOPIC.replace("123456789012", "210987654321")),
    "too old": lambda: message(at=NOW - timedelta(hours=1, seconds=1)),
    "too new": lambda: message(at=NOW + timedelta(hours=1, seconds=1)),
    "version 1": lambda: message(version="1"),
    "version 3": _changed(SignatureVersion="3"),
    "another type": _changed(Type="Other"),
    "a time without digits": _changed(Timestamp="now"),
    "another host": lambda: message(SigningCertURL="https://evil.example/x.pem"),
    "no certificate": lambda: {key: value for key, value in message().items() if key != "SigningCertURL"},
    "raw delivery": lambda: b'{"AlarmName": "x"}',
    "no JSON": lambda: b"x",
    "a list": lambda: b"[]",
    "deep": lambda: b"[" * 200_000,
    "bytes": lambda: b"\xff\xfe",
}


@pytest.mark.parametrize("name", FORGED)
async def test_what_is_forged_does_not(host: Host, name: str) -> None:
    """Whatever is changed about a good message."""
    assert await prove(host, FORGED[name]()) is None


@pytest.mark.parametrize("name", UNASKED)
async def test_nobody_is_asked_about_what_cannot_be_right(host: Host, name: str) -> None:
    """Wrong topic, time, version, type or URL: refused without a connection."""
    assert await prove(host, UNASKED[name]()) is None
    assert not host.asked


async def test_no_strangers_request_connects_us_anywhere(host: Host) -> None:
    """Without the subscription's password nothing is looked at, however good the rest."""
    wrong = "Basic " + base64.b64encode(b"sns:wrong").decode()
    for headers in ({}, {"authorization": "Basic x"}, {"authorization": wrong}):
        assert await prove(host, message(), headers=headers) is None
    assert not host.asked


async def test_version_1_is_asked_for(host: Host) -> None:
    """SHA-1 only where an operator accepts it, and never for what says it is version 2."""
    assert await prove(host, message(version="1"), version_1=True)
    assert await prove(host, message(version="1") | {"SignatureVersion": "2"}, version_1=True) is None


async def test_certificates_that_do_not_count() -> None:
    """One that is over, and one that is not RSA."""
    for wrong in (certificate(days=-1), certificate(ec.generate_private_key(ec.SECP256R1()))):
        assert await prove(Host(wrong), message()) is None


@pytest.mark.parametrize("answer", [b"", b"no certificate", httpx.ConnectError("x"), OSError("x"), TimeoutError()])
async def test_a_certificate_that_cannot_be_had_is_for_later(answer: bytes | Exception) -> None:
    """SNS takes every 4xx for delivered: what cannot be found out now is no refusal."""
    with pytest.raises(UnavailableError):
        await prove(Host(answer), message())


async def test_a_message_again_is_the_same(host: Host) -> None:
    """SNS's id of a message, which is signed, marks it; other ids are other messages."""
    first, again = await prove(host, message()), await prove(host, message() | {"UnsubscribeURL": "x"})
    other = await prove(host, message(MessageId="another"))
    assert first
    assert other
    assert first == again
    assert first.once not in {b"", other.once}


GOOD_URLS = [URL, f"{HOST}/a.pem", f"{HOST}/a/b-c_d.pem"]
BAD_URLS = [
    "",
    URL.replace("https", "http"),
    URL.replace("https", "HTTPS"),
    URL.replace("eu-west-1", "us-east-1"),
    URL.replace("sns.", "sqs."),
    URL.replace("sns.", "xsns."),
    URL.replace(".com/", ".com.evil.example/"),
    URL.replace(".com/", ".com.cn/"),
    URL.replace(".com/", ".com:443/"),
    URL.replace(".com/", ".com@evil.example/"),
    URL.replace("https://", "https://user@"),
    URL.replace("https://", "https://evil.example/"),
    URL.replace("https://", "https://evil.example#"),
    URL.replace("https://sns", "https:\\\\sns"),
    URL + "?x",
    URL + "?x=.pem",
    URL + "#.pem",
    URL + "\n",
    " " + URL,
    URL.replace(".pem", ".der"),
    f"{HOST}/../x.pem",
    f"{HOST}/a/../x.pem",
    f"{HOST}/%2e%2e/x.pem",
    f"{HOST}//evil.example/x.pem",
    f"{HOST}/.pem",
    f"{HOST}",
    f"{HOST}/" + "a" * 600 + ".pem",
    URL.replace("eu-west-1", "\u0435u-west-1"),
    "https://sns.eu-west-1.amazonaws.com.pem",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_urls_that_are_not_sns(url: str) -> None:
    """Only https to SNS's own host in the topic's region, with a plain path to a .pem."""
    assert not is_allowed(url, TOPIC)


def test_urls_of_sns() -> None:
    """The topic's own region, and China's hosts for China's topics only."""
    assert all(is_allowed(url, TOPIC) for url in GOOD_URLS)
    china = "arn:aws-cn:sns:cn-north-1:123456789012:alarms"
    assert is_allowed("https://sns.cn-north-1.amazonaws.com.cn/a.pem", china)
    assert not is_allowed("https://sns.cn-north-1.amazonaws.com/a.pem", china)
    assert not is_allowed(URL, "arn:aws:sns:eu-west-1:alarms")


async def test_certificates_are_asked_for_once_and_seldom(host: Host) -> None:
    """The same URL once; at most eight others a minute, whoever wants them; no more than 32 are kept."""
    store = Certificates(host.fetch)
    for _ in range(3):
        await store.get(URL)
    for number in range(7):
        await store.get(f"{HOST}/{number}.pem")
    for number in range(100):
        with pytest.raises(UnavailableError):
            await store.get(f"{HOST}/x{number}.pem")
    assert len(host.asked) == 8


@pytest.mark.parametrize("code", [301, 302, 307, 403, 404, 500])
async def test_redirects_and_errors_are_not_followed(code: int) -> None:
    """One request, to where it was sent."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(code, headers={"Location": "https://evil.example/x.pem"}, content=certificate())

    with pytest.raises(ValueError, match=str(code)):
        await certificates.fetch(URL, httpx.MockTransport(answer))
    assert asked == [URL]


async def test_what_is_fetched_is_bounded() -> None:
    """Beyond 64 KiB nothing is read; what fits comes as it is."""

    async def endless(request: httpx.Request) -> AsyncIterator[bytes]:
        read.append(b"x" * 10)
        yield read[-1]
        while "small" not in str(request.url):
            read.append(b"x" * 4096)
            yield read[-1]

    def answer(request: httpx.Request) -> httpx.Response:
        read.clear()
        return httpx.Response(200, content=endless(request))

    read: list[bytes] = []

    transport = httpx.MockTransport(answer)
    assert await certificates.fetch(f"{HOST}/small.pem", transport) == b"x" * 10
    with pytest.raises(ValueError, match="larger"):
        await certificates.fetch(URL, transport)
    assert len(b"".join(read)) < certificates.BYTES_MAX + 2 * 4096


@given(st.binary(max_size=300) | st.recursive(st.text() | st.none(), lambda of: st.dictionaries(st.text(), of)))
async def test_rubbish_is_refused_and_never_more(rubbish: object) -> None:
    """Any bytes and any JSON: no proof, no exception, nobody asked."""
    host = Host(b"")
    assert await prove(host, rubbish if isinstance(rubbish, bytes) else json.dumps(rubbish).encode()) is None
    assert not host.asked


@given(st.dictionaries(st.sampled_from(sorted(message("SubscriptionConfirmation"))), st.text(max_size=20), min_size=1))
async def test_no_change_of_a_good_message_opens(changes: dict[str, str]) -> None:
    """Any texts in any fields of a signed message."""
    good = message("SubscriptionConfirmation")
    changed = good | changes
    if changed != good and not changes.keys() <= {"SigningCertURL"}:
        assert await prove(Host(certificate()), changed) is None


def test_the_envelope_is_strict() -> None:
    """What a lenient reader could take for another envelope is none."""
    for body in (b'{"Type": 1}', b'{"Type": ["x"]}', b'\xef\xbb\xbf{"Type": "x"}', b'{"Type": "x",}', b'{"type": "x"}'):
        with pytest.raises(ValueError, match=r".*"):
            envelope_of(body)


@pytest.fixture
async def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """Give a client and the URL of a running bridge with an SNS source."""
    monkeypatch.setitem(PARSER_OF, "sns", "generic")
    config = write_config(
        tmp_path, f"sources:\n- source: sns\n  sns: {{topics: ['{TOPIC}']}}\n", {"sns": "sns:pass:word\n"}
    )
    async with running(config, MemoryIngest()) as bridge:
        yield bridge.http, bridge.url + "/v1/webhooks/sns"


async def test_sns_is_asked_for_its_password(answers: tuple[httpx.AsyncClient, str]) -> None:
    """401 with a challenge, which SNS answers; then 401 again for what is not signed. No reason is told."""
    http, url = answers
    first = await http.post(url, content=json.dumps(message()))
    assert (first.status_code, first.headers["www-authenticate"]) == (401, 'Basic realm="webhooks"')
    stale = message(at=datetime.fromtimestamp(time.time() - 7200, UTC))
    second = await http.post(url, content=json.dumps(stale), headers=BASIC)
    assert (second.status_code, second.content) == (401, first.content)
    assert len(first.content) < 64


async def test_a_subscription_is_confirmed_by_a_person(host: Host) -> None:
    """What is to be run is logged, and only for an authentic confirmation of a topic on the list."""
    with capture_logs() as logs:
        await prove(host, message("SubscriptionConfirmation") | {"Token": "forged"})
        await prove(host, message("SubscriptionConfirmation", TopicArn=TOPIC + "2"))
        assert not [one for one in logs if "confirm" in str(one.get("next"))]
        await prove(host, message("SubscriptionConfirmation", Token="t; rm"))
    assert f"--topic-arn {TOPIC} --token 't; rm'" in logs[-1]["next"]
    assert set(host.asked) == {URL}
