"""ModelService: which models there are."""

from collections.abc import Mapping
from typing import Any

from opsmesh.agents.v1 import model_service_pb2, model_service_pb2_grpc


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Names the model behind each role; `models` maps a role to provider and name."""

    def __init__(self, models: Mapping[str, str]) -> None:
        self._models = dict(models)

    async def ListModels(  # noqa: N802  the IDL's name
        self, request: model_service_pb2.ListModelsRequest, context: Any
    ) -> model_service_pb2.ListModelsResponse:
        """List the roles; none means automation-only mode."""
        del request, context
        models = [model_service_pb2.Model(role=role, model=model) for role, model in sorted(self._models.items())]
        return model_service_pb2.ListModelsResponse(models=models, automation_only=not models)
