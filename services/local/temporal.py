"""The embedded Temporal: the development server, history on disk, 127.0.0.1 only, never phoning home."""

import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.local.files import LocalError, private_directory
from services.local.process import Program
from services.local.waiting import until

FRONTEND = "temporal.api.workflowservice.v1.WorkflowService"


@dataclass(frozen=True, slots=True)
class Temporal:
    """Where one embedded Temporal lives: history under DIRECTORY; its API, HTTP and metrics ports."""

    directory: Path
    port: int
    http_port: int
    metrics_port: int

    @property
    def address(self) -> str:
        """Return the front end's HOST:PORT."""
        return f"127.0.0.1:{self.port}"


def program(temporal: Temporal) -> Program:
    """Return the foreground server."""
    private_directory(temporal.directory)
    argv = [str(Path(sys.executable).with_name("temporal")), "server", "start-dev", "--headless", "--ip", "127.0.0.1"]
    argv += ["--port", str(temporal.port), "--http-port", str(temporal.http_port)]
    argv += ["--metrics-port", str(temporal.metrics_port), "--db-filename", str(temporal.directory / "temporal.db")]
    argv += ["--log-level", "error", "--log-format", "json"]
    argv += ["--dynamic-config-value", "frontend.enableServerVersionCheck=false"]
    environment = {"TEMPORAL_VERSION_CHECK_DISABLED": "1", "HOME": str(temporal.directory)}
    return Program("temporal", argv, env=environment, cwd=temporal.directory, stop_seconds=8)


async def wait_ready(temporal: Temporal, seconds: float = 60) -> None:
    """Return once the front end says SERVING; raises LocalError after SECONDS."""
    options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 50)]
    async with grpc.aio.insecure_channel(temporal.address, options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def check() -> None:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=FRONTEND), timeout=2)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                raise LocalError("it answers, but does not serve yet")

        await until(check, f"Temporal on {temporal.address}", seconds, grpc.aio.AioRpcError, LocalError)
