"""`opsmesh status` on a mesh whose store may forget what it has accepted: nobody can overlook that."""

import json
from pathlib import Path

from opsmesh.ingest.v1.ingest_service_pb2_grpc import add_IngestServiceServicer_to_server
from services.cli.mesh import DURABLE, LOSSY
from tests.cli.mesh import Mesh, run
from tests.ingest.house import eventually
from tests.mesh.world import World


async def test_status_says_that_accepted_signals_may_be_lost(mesh: Mesh, tmp_path: Path) -> None:
    """Beside ingest, which serves, as a table and as JSON; without the override there is no such word."""

    async def no() -> bool:
        return False

    servicers = [(add_IngestServiceServicer_to_server, mesh.ingest)]
    async with World(mesh.state).serving("ingest", servicers, parts={DURABLE: no}) as server:
        endpoints = json.loads((mesh.state / "endpoints.json").read_text())
        endpoints["services"]["ingest"] = f"127.0.0.1:{server.port}"
        (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))

        async def said() -> bool:
            done = await run("status", "--json", "--state", str(tmp_path))
            (row,) = [one for one in done.answer["processes"] if one["name"] == "ingest"]
            return (row["health"], row["why"]) == ("SERVING", LOSSY)

        await eventually(said, 30)
        assert "accepted signals may be LOST" in (await run("status", "--state", str(tmp_path))).out
    assert "LOST" not in (await mesh.run("status")).out
