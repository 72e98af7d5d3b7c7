"""A gateway's groups of machines, as far as guardrails asks for them."""
# ruff: noqa: N802  the names are those of the IDL

from typing import Any

from opsmesh.tools.autoscaling.v1 import autoscaling_tool_service_pb2, autoscaling_tool_service_pb2_grpc


class FakeGroups(autoscaling_tool_service_pb2_grpc.AutoscalingToolServiceServicer):
    """Tells the state of groups of machines: all of them have none."""

    async def DescribeGroup(
        self, request: autoscaling_tool_service_pb2.DescribeGroupRequest, _: Any
    ) -> autoscaling_tool_service_pb2.DescribeGroupResponse:
        """Answer with a group."""
        return autoscaling_tool_service_pb2.DescribeGroupResponse(group_arn=f"arn:{request.target_id}", max_size=20)

    async def SetDesiredCapacity(self, *_: Any) -> Any:
        """Stay unused: guardrails changes nothing."""
        raise NotImplementedError
