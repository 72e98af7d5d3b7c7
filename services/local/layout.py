"""The mesh of one machine on paper: folders and ports. Imports nothing heavy, for `up` holds it as long as it runs."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.local.process import HOUSE
from services.local.supervise import Instance

# the order fixes the ports: gRPC at base+1..8, the bridge's TLS listener at base+9, metrics at base+10..17
SERVICES = ("ingest", "router", "agents", "automation", "guardrails", "gateway", "audit", "bridge")
DEFAULT_PORT_BASE = 7400
DEFAULT_CONFIG = HOUSE / "deploy"
LOOPBACK = "127.0.0.1"
WILDCARDS = ("0.0.0.0", "::")


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

    def describe(self) -> dict[str, Any]:
        """Return its fields for another process; `parse` reads them."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def parse(cls, described: dict[str, Any]) -> "Mesh":
        """Return the mesh that `describe` described."""
        paths = {name: Path(described[name]) for name in ("state", "config", "models") if described[name]}
        return cls(**(described | paths))

    @property
    def bridge_url(self) -> str:
        """Return the URL of the bridge."""
        return f"http://{join(self.dial, self.http_port)}"

    @property
    def bridge_tls_url(self) -> str:
        """Return the URL of the bridge over TLS, where it looks at client certificates."""
        return f"https://{join(self.dial, self.https_port)}"

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
    def config_note(self) -> Path:
        """Return the file that tells commands which configuration folder the mesh was started with."""
        return self.state / "run" / "config"

    @property
    def models_note(self) -> Path:
        """Return the file that tells commands which models file it was started with; empty: the configuration's."""
        return self.state / "run" / "models"

    @property
    def http_port(self) -> int:
        """Return the port of the bridge's webhook listener."""
        return self.port_base

    @property
    def https_port(self) -> int:
        """Return the port of the bridge's webhook listener with TLS."""
        return self.port_base + 9

    def grpc_port(self, service: str) -> int:
        """Return the port of SERVICE's API."""
        return self.port_base + 1 + SERVICES.index(service)

    def metrics_port(self, service: str) -> int:
        """Return the port of SERVICE's Prometheus metrics."""
        return self.port_base + 10 + SERVICES.index(service)

    @property
    def postgres_port(self) -> int:
        """Return the port of PostgreSQL."""
        return self.port_base + 20

    @property
    def valkey_port(self) -> int:
        """Return the port of Valkey."""
        return self.port_base + 21

    @property
    def temporal_port(self) -> int:
        """Return the port of Temporal; its HTTP and metrics ports are the next two."""
        return self.port_base + 22

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
        yield "bridge HTTPS", self.listen, self.https_port
        for name in SERVICES:
            yield f"{name} gRPC", self.listen, self.grpc_port(name)
            yield f"{name} metrics", LOOPBACK, self.metrics_port(name)
        yield "postgres", LOOPBACK, self.postgres_port
        yield "valkey", LOOPBACK, self.valkey_port
        yield "temporal", LOOPBACK, self.temporal_port
        yield "temporal HTTP", LOOPBACK, self.temporal_port + 1
        yield "temporal metrics", LOOPBACK, self.temporal_port + 2
