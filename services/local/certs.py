"""The local certificate authority: one SPIFFE identity per service and per person, and the signing keys."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.local.files import LocalError, private_directory, write_private

TRUST_DOMAIN = "opsmesh.local"
SERVICES = ("bridge", "ingest", "router", "agents", "automation", "guardrails", "gateway", "audit")
PEOPLE = ("operator", "approver", "approver2")
# Of guardrails (grants), audit (the log) and the router (tokens that say which person asked in a chat).
SIGNING_KEYS = ("grant", "log", "identity")
LEAF_LIFETIME = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)
AUTHORITY_LIFETIME = timedelta(days=3650)
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority in memory."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """Return its certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path, name: str) -> None:
        """Store as DIRECTORY/NAME.pem and NAME.key (0600); the key first, so that a certificate never lacks it."""
        write_private(directory / f"{name}.key", self.key)
        write_private(directory / f"{name}.pem", self.certificate)


def spiffe_id(name: str) -> str:
    """Return the identity of a service, or of a person."""
    return f"spiffe://{TRUST_DOMAIN}/{'human' if name in PEOPLE else 'service'}/{name}"


def create_authority(name: str = "opsmesh local CA", now: datetime | None = None) -> Authority:
    """Make a new authority that may sign leaves only."""
    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = _usage(signs_certificates=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def issue(
    authority: Authority,
    identities: Sequence[str],
    dns_names: Sequence[str] = (),
    now: datetime | None = None,
    lifetime: timedelta = LEAF_LIFETIME,
) -> Leaf:
    """Sign a leaf for IDENTITIES (URIs; the mesh accepts exactly one) from NOW for LIFETIME.

    With DNS_NAMES it may also serve, under those names and 127.0.0.1.
    """
    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity) for identity in identities]
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if dns_names:
        names += [x509.DNSName(name) for name in dns_names]
        names.append(x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")))
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
    common_name = (identities[0] if identities else "nobody").rsplit("/", 1)[-1]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    return Leaf(certificate.public_bytes(serialization.Encoding.PEM), private_pem(key))


def ensure(directory: Path, now: datetime | None = None) -> Path:
    """Bring DIRECTORY/pki to what the mesh needs and return it; keeps what is valid, renews what ends within 30 days.

    Raises LocalError for a CA that is unreadable, not its key's, or near its end: replacing it is a person's decision.
    """
    now = now or datetime.now(UTC)
    pki = private_directory(directory / "pki")
    authority = _ensure_authority(pki, now)
    for name in (*SERVICES, *PEOPLE):
        if not _is_good(pki, name, authority, now):
            issue(authority, [spiffe_id(name)], () if name in PEOPLE else (name, "localhost"), now).write(pki, name)
    for name in SIGNING_KEYS:
        if not (pki / f"{name}.key").exists() or not (pki / f"{name}.pub").exists():
            key = ed25519.Ed25519PrivateKey.generate()
            public = key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            write_private(pki / f"{name}.key", private_pem(key))
            write_private(pki / f"{name}.pub", public, mode=0o644)
    return pki


def private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """Return KEY as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_authority(pki: Path, name: str = "ca") -> Authority:
    """Read PKI/NAME.pem with its key; raises OSError or ValueError when they cannot be used together."""
    certificate = x509.load_pem_x509_certificate((pki / f"{name}.pem").read_bytes())
    key = serialization.load_pem_private_key((pki / f"{name}.key").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("the key does not belong to the certificate")
    return Authority(certificate, key)


def _ensure_authority(pki: Path, now: datetime) -> Authority:
    certificate, key = pki / "ca.pem", pki / "ca.key"
    if not certificate.exists():
        made = create_authority(now=now)
        write_private(key, private_pem(made.key))
        write_private(certificate, made.pem, mode=0o644)
        return made
    try:
        kept = load_authority(pki)
    except (OSError, ValueError) as error:
        raise LocalError(f"{certificate} or {key} cannot be used ({error}); {_MEND}") from error
    if kept.certificate.not_valid_after_utc - now < LEAF_LIFETIME:
        raise LocalError(f"{certificate} ends at {kept.certificate.not_valid_after_utc:%Y-%m-%d}; {_MEND}")
    return kept


_MEND = "restore it, or delete the pki folder to start a new trust (every issued certificate ends with it)"


def _is_good(pki: Path, name: str, authority: Authority, now: datetime) -> bool:
    """Say whether NAME's files belong together, to this authority and identity, and last long enough."""
    try:
        leaf = load_authority(pki, name)
        leaf.certificate.verify_directly_issued_by(authority.certificate)
        names = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
        return False
    identities = names.get_values_for_type(x509.UniformResourceIdentifier)
    return identities == [spiffe_id(name)] and leaf.certificate.not_valid_after_utc - now > RENEW_BEFORE


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
