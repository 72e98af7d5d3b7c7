"""What a service process is told by its environment: `OPSMESH_*` variables, secrets as file paths.

A secret that others on the machine can read is none: a file wider than 0600 refuses the boot.
"""

import re
import stat
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from services.mesh.errors import BootError

# Settings that name a secret file, by their last words; a new one is held to the rule by its name alone.
SECRET = re.compile(r"(?<!public)_(key|password|secret|token)(_file)?$")
ADDRESS = r"^[A-Za-z0-9_.\-\[\]:]+:\d{1,5}$"


class MeshSettings(BaseSettings):
    """The settings of every service. Descriptions are the mend that a boot error prints."""

    model_config = SettingsConfigDict(env_prefix="OPSMESH_", frozen=True, extra="ignore")

    listen: str = Field(pattern=ADDRESS, description="gRPC address to listen on, such as 127.0.0.1:7401")
    metrics: str = Field(
        pattern=r"^$|" + ADDRESS, description="address of /metrics and /healthz, such as 127.0.0.1:7411; empty = off"
    )
    tls_cert: Path = Field(description="PEM certificate of this service; make one with: opsmesh certs init")
    tls_key: Path = Field(description="PEM private key of this service; make one with: opsmesh certs init")
    tls_ca: Path = Field(description="PEM certificate of the mesh's CA; make one with: opsmesh certs init")
    identities: Path = Field(description="path of identities.yaml: who may call what")
    config: Path = Field(description="the configuration folder (deploy/)")
    peers: dict[str, str] = Field(description='JSON object of the services to call, such as {"audit":"127.0.0.1:7407"}')
    state: Path = Field(description="a private folder this service may write to")
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error"
    )
    otlp_endpoint: str = Field(default="", description="OTLP gRPC collector for traces, host:port; empty = off")
    rate_limit_per_minute: int = Field(
        default=0,
        ge=0,
        description="most calls a minute of one client (a person, or a sender's address); 0: no limit",
    )
    service_rate_limit_per_minute: int = Field(
        default=60_000,
        ge=0,
        description="most calls a minute of one service, where OPSMESH_RATE_LIMIT_PER_MINUTE is set; 0: no limit",
    )


class PostgresSettings(MeshSettings):
    """The settings of a service with a store in PostgreSQL."""

    postgres_dsn: str = Field(
        pattern="^postgres(ql)?://", description="DSN without password, such as postgresql://opsmesh_audit@host/opsmesh"
    )
    postgres_password_file: Path = Field(description="file that holds the password of the DSN's role")
    request_retention_days: int = Field(
        default=30, ge=1, le=3650, description="days after which the stored answers to request ids are deleted"
    )


S = TypeVar("S", bound=BaseSettings)


def load(cls: type[S]) -> S:
    """Read the settings from the environment; a BootError names every wrong variable and how to mend it."""
    try:
        found = cls()
    except SettingsError as error:
        raise BootError(f"{error}. NEXT: the variable must hold JSON, such as {{}}") from None
    except ValidationError as error:
        raise BootError("\n".join(_lines(cls, error))) from None
    prefix = cls.model_config.get("env_prefix", "")
    for name in cls.model_fields:
        path = getattr(found, name)
        if SECRET.search(name) and isinstance(path, Path):
            require_private(path, f"{prefix}{name}".upper())
    return found


def require_private(path: Path, owner: str) -> None:
    """Raise a BootError that names the chmod to run when the secret file of OWNER is wider than 0600.

    A missing file is left to whoever reads it: it knows what the secret is for.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode & ~0o600:
        raise BootError(
            f"{owner}: the secret file {path} has mode {mode:04o}, so others may read it. NEXT: chmod 600 {path}"
        )


def _lines(cls: type[BaseSettings], error: ValidationError) -> list[str]:
    """Return one line per wrong setting; values are not repeated, one might be a secret in the wrong place."""
    prefix = cls.model_config.get("env_prefix", "")
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        info = cls.model_fields.get(name)
        what = "is not set" if problem["type"] == "missing" else f"is wrong: {problem['msg']}"
        lines.append(f"{prefix}{name}".upper() + f" {what}. NEXT: set it: {info.description if info else 'see above'}")
    return lines
