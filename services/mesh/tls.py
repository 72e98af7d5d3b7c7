"""Certificates: our own identity, the peer's identity, and server credentials that notice a renewed certificate."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import grpc
from cryptography import x509

from services.mesh.errors import BootError
from services.mesh.settings import MeshSettings

SAN: Final = "x509_subject_alternative_name"
SPIFFE: Final = b"spiffe://"
IDENTITY: Final = re.compile(r"(service|human)/[a-z][a-z0-9-]{0,62}")


def own_identity(cert: Path) -> tuple[str, str]:
    """Return (trust domain, identity path) of the certificate at `cert`; a BootError when it has not exactly one."""
    try:
        leaf = x509.load_pem_x509_certificate(cert.read_bytes())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise BootError(f"{cert} is not a certificate of this mesh: {error}. NEXT: opsmesh certs init") from None
    uris = [name.encode() for name in names.get_values_for_type(x509.UniformResourceIdentifier)]
    found = spiffe_id(uris)
    if found is None:
        raise BootError(f"{cert} does not carry exactly one SPIFFE id. NEXT: opsmesh certs init")
    return found


def spiffe_id(names: Iterable[bytes]) -> tuple[str, str] | None:
    """Return (trust domain, identity path) when exactly one of the names is a SPIFFE id, else None."""
    ids = [name for name in names if name.startswith(SPIFFE)]
    if len(ids) != 1:
        return None
    parts = urlsplit(ids[0].decode("ascii", "replace"))
    path = parts.path.removeprefix("/")
    if not IDENTITY.fullmatch(path) or parts.query or parts.fragment:
        return None
    return parts.netloc, path


def peer_identity(auth_context: Mapping[str, Iterable[bytes]], trust_domain: str) -> str | None:
    """Return the identity path of the peer of a call, or None when it has not exactly one of this trust domain."""
    return _identity_among(tuple(auth_context.get(SAN, ())), trust_domain)


@lru_cache(maxsize=1024)
def _identity_among(names: tuple[bytes, ...], trust_domain: str) -> str | None:
    """Return the identity path in the names of a certificate that TLS has verified already."""
    found = spiffe_id(names)
    return found[1] if found and found[0] == trust_domain else None


def _read(path: Path) -> bytes:
    """Read a PEM file or say how to get one."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BootError(f"cannot read {path}: {error.strerror}. NEXT: opsmesh certs init") from None


def client_credentials(settings: MeshSettings) -> grpc.ChannelCredentials:
    """Return the credentials of this service as a client."""
    return grpc.ssl_channel_credentials(_read(settings.tls_ca), _read(settings.tls_key), _read(settings.tls_cert))


class _Renewal:
    """Notices at the next handshake that the certificate was renewed: asked by gRPC, compares modification times."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._stamp = self._now()

    def _now(self) -> tuple[int, ...]:
        files = (self._settings.tls_key, self._settings.tls_cert, self._settings.tls_ca)
        return tuple(path.stat().st_mtime_ns for path in files)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Read the three files."""
        pair = (_read(self._settings.tls_key), _read(self._settings.tls_cert))
        return grpc.ssl_server_certificate_configuration([pair], _read(self._settings.tls_ca))

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Return a new configuration when a file changed; None keeps the one in use (also when one is missing)."""
        try:
            stamp = self._now()
            if stamp == self._stamp:
                return None
            renewed = self.configuration()
        except (OSError, BootError):
            return None
        self._stamp = stamp
        return renewed


def server_credentials(settings: MeshSettings) -> grpc.ServerCredentials:
    """Return credentials that require a client certificate of our CA and follow renewed files."""
    _read(settings.tls_key), _read(settings.tls_cert), _read(settings.tls_ca)
    renewal = _Renewal(settings)
    return grpc.dynamic_ssl_server_credentials(
        renewal.configuration(),
        renewal,  # type: ignore[arg-type]  # None is documented
        require_client_authentication=True,
    )
