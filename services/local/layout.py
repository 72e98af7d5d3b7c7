"""The mesh of one machine on paper: folders, ports, and the environment and program of each process."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.local.postgres import Postgres
from services.local.process import HOUSE, Program
from services.local.supervise import Instance
from services.local.temporal import Temporal
from services.local.valkey import INGEST, Valkey

# the order fixes the ports: gRPC at base+1..8, metrics at base+10..17
SERVICES = ("ingest", "router", "agents", "automation", "guardrails", "gateway", "audit", "bridge")
WITHOUT_DATABASE = ("agents", "bridge")
DEFAULT_PORT_BASE = 7400
DEFAULT_CONFIG = HOUSE / "deploy"
LOOPBACK = "127.0.0.1"
WILDCARDS = ("0.0.0.0", "::")
LONGEST_DRAIN = 10


def join(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def plan(state: Path, config: Path | None, models: Path | None, listen: str, port_base: int) -> "Mesh":
    """Return the mesh on absolute paths, for its processes work in other folders."""
    return Mesh(
        state.resolve(),
        (config or DEFAULT_CONFIG).resolve(),
        models.resolve() if models else None,
        listen,
        port_base,
    )


@dataclass(frozen=True, slots=True)
class Mesh:
    """Everything that is decided before the first process starts."""

    state: Path
    config: Path = DEFAULT_CONFIG
    models: Path | None = None
    listen: str = LOOPBACK
    port_base: int = DEFAULT_PORT_BASE

    @property
    def dial(self) -> str:
        """Return the address under which this machine reaches what listens on `listen`."""
        return LOOPBACK if self.listen in WILDCARDS else self.listen

    @property
    def pki(self) -> Path:
        """Return the folder of certificates and signing keys."""
        return self.state / "pki"

    @property
    def webhook_secrets(self) -> Path:
        """Return the folder with a secret file per webhook source."""
        return self.state / "secrets" / "webhooks"

    @property
    def endpoints_file(self) -> Path:
        """Return the file that says, to people and scripts, where everything is."""
        return self.state / "endpoints.json"

    @property
    def http_port(self) -> int:
        """Return the port of the bridge's webhook listener."""
        return self.port_base

    def grpc_port(self, service: str) -> int:
        """Return the port of SERVICE's API."""
        return self.port_base + 1 + SERVICES.index(service)

    def metrics_port(self, service: str) -> int:
        """Return the port of SERVICE's Prometheus metrics."""
        return self.port_base + 10 + SERVICES.index(service)

    @property
    def postgres(self) -> Postgres:
        """Return the mesh's PostgreSQL."""
        return Postgres(self.state / "postgres", self.state / "secrets" / "postgres", self.port_base + 20)

    @property
    def valkey(self) -> Valkey:
        """Return the mesh's Valkey."""
        return Valkey(self.state / "valkey", self.state / "secrets" / "valkey", self.port_base + 21)

    @property
    def temporal(self) -> Temporal:
        """Return the mesh's Temporal."""
        base = self.port_base
        return Temporal(self.state / "temporal", base + 22, http_port=base + 23, metrics_port=base + 24)

    @property
    def supervisor(self) -> Instance:
        """Return the mesh's process supervisor."""
        return Instance(self.state / "run", self.state / "logs")

    def peers(self) -> dict[str, str]:
        """Return the gRPC address of every service."""
        return {name: join(self.dial, self.grpc_port(name)) for name in SERVICES}

    def ports(self) -> Iterator[tuple[str, str, int]]:
        """Yield (what, address, port) for everything that will listen."""
        yield "bridge HTTP", self.listen, self.http_port
        for name in SERVICES:
            yield f"{name} gRPC", self.listen, self.grpc_port(name)
            yield f"{name} metrics", LOOPBACK, self.metrics_port(name)
        yield "postgres", LOOPBACK, self.postgres.port
        yield "valkey", LOOPBACK, self.valkey.port
        yield "temporal", LOOPBACK, self.temporal.port
        yield "temporal HTTP", LOOPBACK, self.temporal.http_port
        yield "temporal metrics", LOOPBACK, self.temporal.metrics_port


def service_program(mesh: Mesh, name: str) -> Program:
    """Return SERVICE as a process of its own."""
    argv = [sys.executable, "-m", "services", name]
    return Program(name, argv, env=environment(mesh, name), cwd=HOUSE, stop_seconds=LONGEST_DRAIN)


def environment(mesh: Mesh, name: str) -> dict[str, str]:
    """Return the settings of one service: what it needs for its job, and no secret of another's."""
    settings = {
        "LISTEN": join(mesh.listen, mesh.grpc_port(name)),
        "METRICS": join(LOOPBACK, mesh.metrics_port(name)),
        "TLS_CERT": str(mesh.pki / f"{name}.pem"),
        "TLS_KEY": str(mesh.pki / f"{name}.key"),
        "TLS_CA": str(mesh.pki / "ca.pem"),
        "IDENTITIES": str(mesh.config / "identities.yaml"),
        "CONFIG": str(mesh.config),
        "PEERS": json.dumps(mesh.peers()),
        "STATE": str(mesh.state / "services" / name),
        "LOG_LEVEL": "info",
        "OTLP_ENDPOINT": "",
    }
    if name not in WITHOUT_DATABASE:
        role = f"opsmesh_{name}"
        settings["POSTGRES_DSN"] = mesh.postgres.dsn(role, with_password=False)
        settings["POSTGRES_PASSWORD_FILE"] = str(mesh.postgres.password_file(role))
    return {f"OPSMESH_{key}": value for key, value in (settings | _own(mesh, name)).items()}


def _own(mesh: Mesh, name: str) -> dict[str, str]:
    """Return what only service NAME is given."""
    own = {
        "ingest": {
            "REDIS_URL": mesh.valkey.url(INGEST, with_password=False),
            "REDIS_PASSWORD_FILE": str(mesh.valkey.password_file(INGEST)),
        },
        "agents": {"MODELS_FILE": str(mesh.models)} if mesh.models else {},
        "automation": {"TEMPORAL": mesh.temporal.address},
        "guardrails": {"GRANT_KEY_FILE": str(mesh.pki / "grant.key")},
        "gateway": {
            "GRANT_PUBLIC_KEY_FILE": str(mesh.pki / "grant.pub"),
            "BACKENDS_FILE": str(mesh.config / "backends.yaml"),
        },
        "audit": {
            "LOG_KEY_FILE": str(mesh.pki / "log.key"),
            "CHECKPOINT_FILE": str(mesh.state / "audit" / "checkpoints.jsonl"),
        },
        "bridge": {"HTTP": join(mesh.listen, mesh.http_port), "SECRETS": str(mesh.webhook_secrets)},
    }
    return own.get(name, {})
