"""Client certificates: the bridge's TLS listener has checked chain and possession, here it is whose it is.

The listener ends TLS itself. A header that a proxy writes would have to be believed to come from that proxy, and who
reaches the bridge around it could write one too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from services.bridge.senders.proof import Knock, Proof


def read_authorities(text: str) -> tuple[bytes, ...]:
    """Return the certificates of a PEM file as DER; none for an empty file. Raises ValueError."""
    if not text.strip():
        return ()
    return tuple(one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(text.encode()))


def names_of(certificate: x509.Certificate) -> set[str]:
    """Return the DNS names, URIs and common names of a certificate."""
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    found = {str(one.value) for one in common}
    try:
        others = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return found
    return (
        found
        | set(others.get_values_for_type(x509.DNSName))
        | set(others.get_values_for_type(x509.UniformResourceIdentifier))
    )


@dataclass(frozen=True, slots=True)
class Mtls:
    """A certificate that one of the source's own CAs issued, with one of the names if any are asked for."""

    names: frozenset[str] = frozenset()

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Look at issuer, time and name: a connection may be older than its certificate's end, and CAs be several."""
        if not knock.certificate:
            return None
        try:
            certificate = x509.load_der_x509_certificate(knock.certificate)
            known = any(_issued(certificate, authority) for authority in secrets)
            named = not self.names or bool(names_of(certificate) & self.names)
        except ValueError:
            return None
        moment = datetime.fromtimestamp(knock.now, UTC)
        timely = certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc
        return Proof() if known and named and timely else None


def _issued(certificate: x509.Certificate, authority: bytes) -> bool:
    try:
        certificate.verify_directly_issued_by(x509.load_der_x509_certificate(authority))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
