"""What agents asks of ingest: one incident, as it is now."""

import grpc.aio

from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc


class Incidents:
    """Reads incidents; a refusal of ingest is passed on to whoever asked agents."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ingest: ingest_service_pb2_grpc.IngestServiceAsyncStub = ingest_service_pb2_grpc.IngestServiceStub(
            channel
        )

    async def incident(self, incident_id: str) -> ingest_service_pb2.Incident:
        """Return an incident; raises AioRpcError."""
        request = ingest_service_pb2.GetIncidentRequest(incident_id=incident_id)
        return (await self._ingest.GetIncident(request)).incident
