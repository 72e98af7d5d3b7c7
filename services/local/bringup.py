"""The work of `opsmesh up` between nothing and a healthy mesh, in a process that ends when it is done.

It imports every client library there is; in a process of its own that memory goes back. It tells its parent, which
keeps the mesh up, one JSON object a line: a note for the person, `prepared` (the supervisor can start), `ready`, or the
error that ended it.
"""

import asyncio
import json
import sys
from collections.abc import Sequence

import grpc

from services.local import certs, endpoints, postgres, reach, supervise, temporal, valkey
from services.local.files import LocalError, private_directory, write_private
from services.local.layout import SERVICES, Mesh
from services.local.programs import Stores, write_supervisor
from services.mesh.errors import BootError


def tell(event: str, text: str = "") -> None:
    """Send one line to the parent."""
    sys.stdout.write(json.dumps({"event": event, "text": text}) + "\n")
    sys.stdout.flush()


def prepare(mesh: Mesh, services: Sequence[str]) -> dict[str, dict[str, str]]:
    """Make what is missing on disk: certificates, secrets, the database cluster, folders; return the webhooks."""
    write_private(mesh.config_note, str(mesh.config).encode())
    write_private(mesh.models_note, str(mesh.models or "").encode())
    certs.ensure(mesh.state)
    webhooks = endpoints.ensure_webhooks(mesh)
    for name in services:
        private_directory(mesh.state / "services" / name)
    private_directory(mesh.state / "audit")
    cluster = Stores.of(mesh).postgres
    opened = postgres.initialise(cluster)
    for folder in (folder for folder in opened if not folder.is_relative_to(mesh.state)):
        tell("note", f"note: {folder} is now traversable (o+x), for PostgreSQL cannot run as root")
    for role in postgres.ROLES:
        cluster.password(role)
    write_supervisor(mesh, services)
    return webhooks


async def settle(mesh: Mesh, services: Sequence[str], webhooks: dict[str, dict[str, str]]) -> None:
    """Wait for the stores, bring roles and schemas up to date, start all services at once, publish, and say where."""
    stores = Stores.of(mesh)
    temporal_ready = asyncio.create_task(temporal.wait_ready(stores.temporal))
    try:
        await asyncio.gather(postgres.wait_ready(stores.postgres), valkey.wait_ready(stores.valkey))
        await postgres.provision(stores.postgres)
        await postgres.migrate(stores.postgres.dsn(postgres.OWNER))
        if services:
            await asyncio.to_thread(supervise.call, mesh.supervisor, "supervisor.startProcessGroup", "services", False)
        await asyncio.gather(temporal_ready, *(reach.wait_serving(mesh, name) for name in services))
    finally:
        temporal_ready.cancel()
    if set(services) == set(SERVICES):  # a part of the mesh (in tests) has nobody to publish to
        await _publish(mesh)
    endpoints.write(mesh, endpoints.describe(mesh, webhooks))


async def _publish(mesh: Mesh) -> None:
    """Publish what has no version yet and tell what drifted; raises LocalError with the refusal."""
    from services.local.publish import publish  # noqa: PLC0415 - knows every API: not needed before they all run

    async with reach.channels(mesh) as channels:
        try:
            drift = await publish(channels, mesh.config)
        except BootError as error:
            raise LocalError(str(error)) from error
        except grpc.aio.AioRpcError as error:
            raise LocalError(f"the configuration in {mesh.config} is refused: {error.details()}") from error
    for line in drift:
        tell("note", line)


def main(arguments: Sequence[str]) -> int:
    """Bring up the mesh that the parent describes (JSON of its fields, then of the service names)."""
    described, services = (json.loads(argument) for argument in arguments)
    mesh = Mesh.parse(described)
    try:
        webhooks = prepare(mesh, services)
        tell("prepared")
        asyncio.run(settle(mesh, services, webhooks))
    except LocalError as error:
        tell("error", str(error))
        return 1
    tell("ready", f"ready: {mesh.bridge_url} (everything else: {mesh.endpoints_file})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
