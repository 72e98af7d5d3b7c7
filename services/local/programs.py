"""What runs on one machine: the stores, and each service with the settings that are its own."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from services.local import postgres, supervise, temporal, valkey
from services.local.layout import LOOPBACK, Mesh, join
from services.local.process import HOUSE, Program, tuned, write_spec

WITHOUT_DATABASE = ("bridge",)
LONGEST_DRAIN = 10


@dataclass(frozen=True, slots=True)
class Stores:
    """The three stores of a mesh."""

    postgres: postgres.Postgres
    valkey: valkey.Valkey
    temporal: temporal.Temporal

    @classmethod
    def of(cls, mesh: Mesh) -> "Stores":
        """Return the stores of MESH."""
        secrets = mesh.state / "secrets"
        port = mesh.temporal_port
        return cls(
            postgres.Postgres(mesh.state / "postgres", secrets / "postgres", mesh.postgres_port),
            valkey.Valkey(mesh.state / "valkey", secrets / "valkey", mesh.valkey_port),
            temporal.Temporal(mesh.state / "temporal", port, http_port=port + 1, metrics_port=port + 2),
        )

    def programs(self) -> list[Program]:
        """Return the stores as processes."""
        return [postgres.program(self.postgres), valkey.program(self.valkey), temporal.program(self.temporal)]


def write_supervisor(mesh: Mesh, services: Sequence[str]) -> list[str]:
    """Write the supervisor's configuration: stores start with it, SERVICES when told; return its command."""
    groups = [
        supervise.Group("stores", Stores.of(mesh).programs()),
        supervise.Group("services", [service_program(mesh, name) for name in services], autostart=False),
    ]
    return write_spec(supervise.program(mesh.supervisor, groups), mesh.supervisor.run)


def service_program(mesh: Mesh, name: str) -> Program:
    """Return SERVICE as a process of its own."""
    argv = [sys.executable, "-m", "services", name]
    return Program(name, argv, env=environment(mesh, name), cwd=HOUSE, stop_seconds=LONGEST_DRAIN)


def environment(mesh: Mesh, name: str) -> dict[str, str]:
    """Return the settings of one service: what it needs for its job, and no secret of another's."""
    stores = Stores.of(mesh)
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
        settings["POSTGRES_DSN"] = stores.postgres.dsn(role, with_password=False)
        settings["POSTGRES_PASSWORD_FILE"] = str(stores.postgres.password_file(role))
    own = {f"OPSMESH_{key}": value for key, value in _own(mesh, name).items()}
    return {f"OPSMESH_{key}": value for key, value in settings.items()} | tuned() | own


def _own(mesh: Mesh, name: str) -> dict[str, str]:
    """Return what only service NAME is given."""
    stores = Stores.of(mesh)
    own = {
        "ingest": {
            "REDIS_URL": stores.valkey.url(valkey.INGEST, with_password=False),
            "REDIS_PASSWORD_FILE": str(stores.valkey.password_file(valkey.INGEST)),
        },
        "agents": {"MODELS_FILE": str(mesh.models)} if mesh.models else {},
        "automation": {"TEMPORAL": stores.temporal.address},
        "router": {"IDENTITY_KEY_FILE": str(mesh.pki / "identity.key")},
        "guardrails": {
            "GRANT_KEY_FILE": str(mesh.pki / "grant.key"),
            "IDENTITY_PUBLIC_KEY_FILE": str(mesh.pki / "identity.pub"),
        },
        "gateway": {
            "GRANT_PUBLIC_KEY_FILE": str(mesh.pki / "grant.pub"),
            "BACKENDS_FILE": str(mesh.config / "backends.yaml"),
        },
        "audit": {
            "LOG_KEY_FILE": str(mesh.pki / "log.key"),
            "CHECKPOINT_FILE": str(mesh.state / "audit" / "checkpoints.jsonl"),
        },
        "bridge": {
            "HTTP": join(mesh.listen, mesh.http_port),
            "HTTPS": join(mesh.listen, mesh.https_port),
            "SECRETS": str(mesh.webhook_secrets),
        },
    }
    return own.get(name, {})
