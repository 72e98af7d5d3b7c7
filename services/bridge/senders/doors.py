"""The configured senders with their secrets, checked at boot: nobody is let in by a missing file."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from opsmesh.config.v1 import sources_pb2
from opsmesh.ingest.v1 import signal_pb2
from services.bridge.domain import read_secrets
from services.bridge.senders import shared, signed
from services.bridge.senders.events import RoutingKey
from services.bridge.senders.mtls import Mtls, read_authorities
from services.bridge.senders.proof import Knock, Proof, Verifier
from services.bridge.senders.sns import Sns
from services.mesh.config import load_yaml
from services.mesh.errors import BootError
from services.mesh.settings import require_private

Method = signal_pb2.Authenticity
Reader = Callable[[str], tuple[bytes, ...]]
# Characters. A secret that is shown is all there is to guess; one that signs is never seen, passwords are shorter.
SHOWN_LEAST = 32
KEY_LEAST = 16
IN_A_PATH = re.compile(rb"[A-Za-z0-9._~-]+")
log = structlog.get_logger("opsmesh.bridge")


def read_standard(text: str) -> tuple[bytes, ...]:
    """Return secrets of Standard Webhooks. Raises ValueError when one is not in their spelling."""
    found = read_secrets(text)
    for secret in found:
        signed.standard_key(secret)
    return found


def read_passwords(text: str) -> tuple[bytes, ...]:
    """Return `user:password` pairs. Raises ValueError when one is none, or its password is empty."""
    found = read_secrets(text)
    if not all(_password(one) for one in found):
        raise ValueError("it is not user:password")
    return found


def read_tokens(text: str) -> tuple[bytes, ...]:
    """Return secrets that can stand in a path as they are. Raises ValueError when one cannot."""
    found = read_secrets(text)
    if not all(IN_A_PATH.fullmatch(one) for one in found):
        raise ValueError("it has more than letters, digits, -, _, . and ~")
    return found


def _password(secret: bytes) -> bytes:
    return secret.partition(b":")[2]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a sender proves itself, what that is called in a signal, and how its secret file is read.

    `least` is how many bytes a secret should have, counted in what `secret` makes of it; shorter ones are told of.
    """

    verifier: Verifier
    method: signal_pb2.Authenticity.Method.ValueType
    read: Reader = read_secrets
    least: int = 0
    secret: Callable[[bytes], bytes] = bytes

    def is_weak(self, secrets: Iterable[bytes]) -> bool:
        """Say whether one of the secrets could be guessed."""
        return any(len(self.secret(one)) < self.least for one in secrets)


# Schemes without settings, by their name in sources.yaml.
SCHEMES = {
    "none": Scheme(shared.Nothing(), Method.METHOD_NONE),
    "bearer": Scheme(shared.Bearer(), Method.METHOD_BEARER, least=SHOWN_LEAST),
    "basic": Scheme(shared.Basic(), Method.METHOD_BASIC, read_passwords, KEY_LEAST, _password),
    "routing_key": Scheme(RoutingKey(), Method.METHOD_ROUTING_KEY, least=SHOWN_LEAST),
    "hmac_github": Scheme(signed.GITHUB, Method.METHOD_HMAC, least=KEY_LEAST),
    "hmac_pagerduty": Scheme(signed.PAGERDUTY, Method.METHOD_HMAC, least=KEY_LEAST),
    "hmac_sentry": Scheme(signed.SENTRY, Method.METHOD_HMAC, least=KEY_LEAST),
    "hmac_slack": Scheme(signed.Slack(), Method.METHOD_HMAC, least=KEY_LEAST),
    "hmac_splunk": Scheme(signed.Splunk(), Method.METHOD_HMAC, least=KEY_LEAST),
    "hmac_standard": Scheme(signed.Standard(), Method.METHOD_HMAC, read_standard, KEY_LEAST, signed.standard_key),
}


def scheme_of(source: sources_pb2.Source) -> Scheme:
    """Return the scheme of a configured source."""
    match source.WhichOneof("auth"):
        case "header":
            return Scheme(shared.Header(source.header.header), Method.METHOD_HEADER, least=SHOWN_LEAST)
        case "url_token":
            return Scheme(
                shared.UrlToken(source.url_token.header), Method.METHOD_URL_TOKEN, read_tokens, least=SHOWN_LEAST
            )
        case "hmac_grafana":
            own = source.hmac_grafana
            named = {"header": own.header} if own.header else {}
            verifier = signed.Grafana(**named, time_header=own.timestamp_header)
            return Scheme(verifier, Method.METHOD_HMAC, least=KEY_LEAST)
        case "sns":
            sns = Sns(frozenset(source.sns.topics), source.sns.accept_version_1)
            return Scheme(sns, Method.METHOD_SNS, read_passwords, KEY_LEAST, _password)
        case "mtls":
            return Scheme(Mtls(frozenset(source.mtls.names)), Method.METHOD_MTLS, read_authorities)
        case str() as name:
            return SCHEMES[name]
    raise BootError(f"source {source.source} does not say how it proves itself\nNEXT: name a scheme in sources.yaml")


class Door:
    """One source: how it proves itself, and the secrets of its file, read again when the file changes."""

    def __init__(self, source: sources_pb2.Source, file: Path | None) -> None:
        self.source = source.source
        self.parser = source.parser or source.source
        # Whose path may go on after the source, and whose handshakes are granted.
        self.takes_token = source.WhichOneof("auth") == "url_token"
        self.origins = frozenset(one.lower() for one in source.webhook_origins)
        self.accept_malformed = source.malformed_answer == sources_pb2.Source.MALFORMED_ANSWER_ACCEPT
        # Who would answer a challenge is asked for it; SNS shows its password only then.
        self.challenge = source.WhichOneof("auth") in {"basic", "sns"}
        # Never passed on, whatever it is called.
        self.secret_header = (source.header.header or source.url_token.header).lower()
        self._scheme = scheme_of(source)
        self._file = file
        self._read_as: tuple[int, ...] = ()
        self._secrets: tuple[bytes, ...] = ()
        self._told = False
        self.authenticity = signal_pb2.Authenticity(method=self._scheme.method, verified=file is not None)
        if file is not None:
            self._read(file)

    @property
    def authorities(self) -> tuple[bytes, ...]:
        """Return the CAs of client certificates, as DER."""
        return self._secrets if isinstance(self._scheme.verifier, Mtls) else ()

    async def prove(self, knock: Knock) -> Proof | None:
        """Return how the request proves its sender, or None when it does not. Raises UnavailableError."""
        self._follow()
        return await self._scheme.verifier.verify(knock, self._secrets)

    def _follow(self) -> None:
        """Read the secrets again when their file changed: before every look, or a revoked one would go on opening.

        A file that is gone or unreadable keeps the last ones: a slip of the hand must not lose signals.
        """
        if self._file is None:
            return
        try:
            if _version(self._file) == self._read_as:
                return
            self._read(self._file)
        except (OSError, UnicodeDecodeError, BootError) as error:
            if not self._told:
                log.warning("the secrets cannot be read again, the last ones stay", why=str(error).splitlines()[0])
            self._told = True

    def _read(self, file: Path) -> None:
        what = f"the secret of source {self.source}"
        require_private(file, what)
        try:
            # Before it is read: what is written meanwhile is read at the next look.
            version = _version(file)
            secrets = self._scheme.read(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise BootError(
                f"{what} cannot be read: {file}: {error.strerror}\n"
                "NEXT: write it there, one secret a line, or say `none: {}` for this source in sources.yaml"
            ) from error
        except ValueError as error:
            raise BootError(f"{what} is not what its scheme wants: {file}: {error}\nNEXT: correct the file") from error
        if not secrets:
            raise BootError(
                f"the secret file of source {self.source} is empty: {file}\n"
                "NEXT: write a secret into it, or say `none: {}` for this source in sources.yaml"
            )
        if self._scheme.is_weak(secrets):
            log.warning(
                "a secret is short enough to be guessed",
                source=self.source,
                file=str(file),
                next=f"write one of at least {self._scheme.least} random characters, as of `openssl rand -hex 32`",
            )
        self._read_as, self._secrets, self._told = version, secrets, False


def _version(file: Path) -> tuple[int, ...]:
    """Return what tells two contents of a file apart; its times alone do not, for a file system counts in ticks."""
    found = file.stat()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def load_doors(config: Path, secrets: Path) -> dict[str, Door]:
    """Return the doors by source name. Raises BootError for a missing secret and ConfigError for a bad file."""
    doors: dict[str, Door] = {}
    for source in load_yaml(config / "sources.yaml", sources_pb2.Sources).sources:
        if source.source in doors:
            raise BootError(f"sources.yaml names {source.source} twice\nNEXT: give each source a name of its own")
        doors[source.source] = _door(source, secrets)
        if source.WhichOneof("auth") == "sns" and not source.sns.topics:
            log.warning("nobody may send", source=source.source, next="name its `topics` in sources.yaml")
    return doors


def _door(source: sources_pb2.Source, secrets: Path) -> Door:
    auth = source.WhichOneof("auth")
    if auth is None or auth == "none":
        return Door(source, None)
    return Door(source, secrets / (getattr(source, auth).secret_file or source.source))
