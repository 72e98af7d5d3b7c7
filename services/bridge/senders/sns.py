"""Amazon SNS: HTTP basic out of the subscription's URL, then the signature over the envelope.

Without the password no certificate is looked for, so no stranger's request makes us connect anywhere. A confirmation
of a subscription is authenticated like every message and told to the operator; its SubscribeURL is never opened.
"""

import base64
import binascii
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from services.bridge.senders.certificates import Certificates, is_allowed
from services.bridge.senders.proof import Knock, Proof, fingerprint
from services.bridge.senders.shared import shows_password

# SNS tries for an hour at most.
WINDOW_SECONDS = 3600
NOTIFICATION = "Notification"
CONFIRMATIONS = frozenset({"SubscriptionConfirmation", "UnsubscribeConfirmation"})
# In the order in which they are signed.
SIGNED = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
SIGNED_CONFIRMATION = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
UNSIGNED = frozenset({"SignatureVersion", "Signature", "SigningCertURL", "UnsubscribeURL", "MessageAttributes"})
KNOWN = frozenset({*SIGNED, *SIGNED_CONFIRMATION, *UNSIGNED})
MESSAGE_ID = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z", re.ASCII)
log = structlog.get_logger("opsmesh.bridge")


def envelope_of(body: bytes) -> dict[str, str]:
    """Return the envelope's texts. Raises ValueError for what ingest might read in another way than the signer.

    A key given twice, or one that nobody signs and no SNS sends, would let who holds one good message say another.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict) or not value.keys() <= KNOWN:
        raise ValueError("not an envelope of SNS")
    texts = {key: text for key, text in value.items() if isinstance(text, str)}
    # SNS says "no subject" by leaving it out, or by null.
    if any(key not in texts and key != "MessageAttributes" and one is not None for key, one in value.items()):
        raise ValueError("a field is not text")
    # Fields are signed with line feeds between them: only the message may hold one, or they could be cut elsewhere.
    if any("\n" in text for key, text in texts.items() if key != "Message"):
        raise ValueError("a line feed in a field")
    return texts


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is given twice")
    return made


def signed_text(envelope: dict[str, str]) -> bytes:
    """Return the bytes that SNS signs. Raises KeyError when a field is missing, ValueError for a wrong one."""
    kind = envelope["Type"]
    if kind == NOTIFICATION:
        keys = [key for key in SIGNED if key != "Subject" or key in envelope]
    elif kind in CONFIRMATIONS:
        keys = list(SIGNED_CONFIRMATION)
    else:
        raise ValueError("a type that SNS does not send")
    if not MESSAGE_ID.fullmatch(envelope["MessageId"]):
        raise ValueError("MessageId")
    return "".join(f"{key}\n{envelope[key]}\n" for key in keys).encode()


def seconds_of(text: str) -> float:
    """Return a timestamp of SNS in Unix seconds. Raises ValueError."""
    if not TIME.fullmatch(text):
        raise ValueError("Timestamp")
    return datetime.fromisoformat(text).timestamp()


def is_signed(certificate: x509.Certificate, signature: bytes, text: bytes, version: str, now: float) -> bool:
    """Say whether a certificate that is valid now signed the text."""
    if not certificate.not_valid_before_utc <= datetime.fromtimestamp(now, UTC) <= certificate.not_valid_after_utc:
        return False
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    # Version 1 is SHA-1 by definition; an operator has to ask for it.
    digest = hashes.SHA256() if version == "2" else hashes.SHA1()  # noqa: S303
    try:
        key.verify(signature, text, padding.PKCS1v15(), digest)
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Sns:
    """Messages of the named topics."""

    topics: frozenset[str]
    accept_version_1: bool = False
    certificates: Certificates = field(default_factory=Certificates)

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Look at everything that costs nothing, and only then for the certificate."""
        if not shows_password(knock, secrets):
            return None
        try:
            envelope = envelope_of(knock.body)
            text = signed_text(envelope)
            signature = base64.b64decode(envelope["Signature"], validate=True)
            version, topic, url = envelope["SignatureVersion"], envelope["TopicArn"], envelope["SigningCertURL"]
            timely = abs(knock.now - seconds_of(envelope["Timestamp"])) <= WINDOW_SECONDS
        except (KeyError, ValueError, binascii.Error) as error:
            log.warning("a message of SNS is refused", why=f"{error!r:.200}")
            return None
        allowed = version == "2" or (version == "1" and self.accept_version_1)
        if topic not in self.topics or not (timely and allowed and is_allowed(url, topic)):
            log.warning("a message of SNS is refused", topic=topic[:300], timely=timely, version=version[:8])
            return None
        certificate = await self.certificates.get(url)
        if not is_signed(certificate, signature, text, version, knock.now):
            return None
        if envelope["Type"] in CONFIRMATIONS:
            _tell(envelope)
        return Proof(fingerprint(topic.encode(), b"\0", envelope["MessageId"].encode()))


def _tell(envelope: dict[str, str]) -> None:
    """Tell the operator what to do: what opens a tap should not be done by what flows out of it.

    The token may be told: all it can do is to have a topic that is wanted sent to this address.
    """
    topic = envelope["TopicArn"]
    confirm = f"aws sns confirm-subscription --authenticate-on-unsubscribe true --topic-arn {topic} --token "
    if envelope["Type"] == "SubscriptionConfirmation":
        log.warning("a topic waits for its confirmation", topic=topic, next=confirm + shlex.quote(envelope["Token"]))
    else:
        log.warning("a topic sends here no longer", topic=topic, next="subscribe it again, if that is not wanted")
