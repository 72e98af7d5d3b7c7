"""Tools for groups of machines of AWS Auto Scaling: look, and want another number of them.

AWS has no compare-and-set for the wanted number: between the last reading of the precondition and the change, some
milliseconds, somebody else may change it, too. The change then still sets the number that was authorised.
"""

from collections.abc import Mapping
from typing import Any, Final

from opsmesh.tools.autoscaling.v1 import autoscaling_tool_service_pb2 as pb
from opsmesh.tools.autoscaling.v1 import autoscaling_tool_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.gateway import domain
from services.gateway.backends import Group
from services.gateway.domain import Ending, plain
from services.gateway.tools.asking import DETAIL_MAX, missing, refused, seconds_left, unavailable, wrong
from services.gateway.tools.aws import AutoScaling, AwsError
from services.gateway.tools.http import NoAnswerError, NotDeliveredError
from services.gateway.tools.toolbox import EffectFailedError
from services.mesh.errors import Refusal

LINES: Final = (
    "autoscaling: [{{target_id: {target!r}, group: NAME, "
    "aws: {{region: eu-west-1, access_key_id: KEY, secret_access_key_file: aws.secret}}}}]"
)
INSTANCES_MAX: Final = 100
WORD_MAX: Final = 64
IN_SERVICE: Final = "InService"
# A request that AWS answered like this was refused for good.
REFUSED: Final = frozenset({"ValidationError", "InvalidParameterValue", "InvalidParameterCombination"})
SERVER_ERROR: Final = 500


class AutoscalingTools:
    """AutoscalingToolService on the configured groups; groups of one account share its client."""

    service = pb.DESCRIPTOR.services_by_name["AutoscalingToolService"]
    add = staticmethod(rpc.add_AutoscalingToolServiceServicer_to_server)

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._groups = groups
        self._accounts = {account: AutoScaling(account) for account in {one.account for one in groups.values()}}

    async def close(self) -> None:
        """Close all connections."""
        for account in self._accounts.values():
            await account.close()

    async def describe_group(
        self, request: pb.DescribeGroupRequest, _precondition: Mapping[str, str]
    ) -> pb.DescribeGroupResponse:
        """Say what the cloud says."""
        target = request.target_id
        group = self._find(target)
        try:
            answer = await self._accounts[group.account].call(
                "describe_auto_scaling_groups", seconds_left(), AutoScalingGroupNames=[group.name]
            )
        except (AwsError, NotDeliveredError, NoAnswerError) as error:
            raise unavailable(target, plain(str(error), DETAIL_MAX)) from error
        found = next((one for one in answer["AutoScalingGroups"] if one["AutoScalingGroupName"] == group.name), None)
        if found is None:
            raise refused(target, f"there is no Auto Scaling group {group.name} in {group.account.region}")
        return to_proto(found)

    async def set_desired_capacity(
        self, request: pb.SetDesiredCapacityRequest, precondition: Mapping[str, str]
    ) -> pb.SetDesiredCapacityResponse:
        """Want another number; what was said about the size of the change must be true of the group as it is."""
        target, before = request.target_id, int(precondition["desired_capacity"])
        group = self._find(target)
        if detail := falsehood(request, before):
            raise Refusal(error_reason_pb2.ERROR_REASON_BLAST_RADIUS_WRONG, target=target, detail=detail)
        least, most = int(precondition["min_size"]), int(precondition["max_size"])
        if not least <= request.desired_capacity <= most:
            raise wrong("desired_capacity", f"the group takes from {least} to {most}")
        try:
            await self._accounts[group.account].call(
                "set_desired_capacity",
                seconds_left(),
                AutoScalingGroupName=group.name,
                DesiredCapacity=request.desired_capacity,
                HonorCooldown=False,
            )
        except NotDeliveredError as error:
            raise unavailable(target, str(error)) from error
        except AwsError as error:
            words = plain(str(error), DETAIL_MAX)
            if error.code in REFUSED:
                raise EffectFailedError(f"AWS refuses: {words}") from error
            if error.status < SERVER_ERROR:
                # No key, no permission, too many calls, an activity under way: nothing was changed.
                raise unavailable(target, words) from error
            raise
        return pb.SetDesiredCapacityResponse(previous_capacity=before, desired_capacity=request.desired_capacity)

    async def resolve_set_desired_capacity(
        self, request: pb.SetDesiredCapacityRequest, precondition: Mapping[str, str]
    ) -> Ending:
        """Compare the number wanted now with the one before and the one asked for."""
        found = await self.describe_group(pb.DescribeGroupRequest(target_id=request.target_id), {})
        return capacity_ending(request.desired_capacity, precondition, found)

    def _find(self, target: str) -> Group:
        """Return a configured group, or refuse."""
        if target not in self._groups:
            raise missing(target, LINES.format(target=target))
        return self._groups[target]


def falsehood(request: pb.SetDesiredCapacityRequest, before: int) -> str:
    """Return what is untrue about the size of a change; empty when it is as said."""
    change = request.desired_capacity - before
    said, true = (request.instances_added, request.instances_removed), (max(0, change), max(0, -change))
    if said == true:
        return ""
    return (
        f"from {before} to {request.desired_capacity} adds {true[0]} and removes {true[1]}, "
        f"not instances_added {said[0]} and instances_removed {said[1]}"
    )


def capacity_ending(wanted: int, precondition: Mapping[str, str], found: pb.DescribeGroupResponse) -> Ending:
    """Say from the number before and the one now how a change ended."""
    before = int(precondition.get("desired_capacity", "0"))
    if found.group_arn != precondition.get("group_arn"):
        return domain.unknown("the group is another one now")
    if found.desired_capacity == wanted:
        response = pb.SetDesiredCapacityResponse(previous_capacity=before, desired_capacity=wanted)
        return domain.succeeded(response.SerializeToString(deterministic=True), f"{wanted} are wanted")
    if found.desired_capacity == before:
        return domain.failed(f"{before} are wanted as before")
    return domain.unknown(f"{found.desired_capacity} are wanted: somebody else changed it, too")


def to_proto(group: Mapping[str, Any]) -> pb.DescribeGroupResponse:
    """Return a group as AWS describes it, bounded."""
    instances = sorted(group.get("Instances", ()), key=lambda one: str(one["InstanceId"]))
    shown = [
        pb.Instance(
            instance_id=plain(one["InstanceId"], 2 * WORD_MAX),
            lifecycle_state=plain(one.get("LifecycleState", ""), WORD_MAX),
            healthy=_healthy(one),
            zone=plain(one.get("AvailabilityZone", ""), WORD_MAX),
        )
        for one in instances[:INSTANCES_MAX]
    ]
    return pb.DescribeGroupResponse(
        group_arn=group["AutoScalingGroupARN"],
        desired_capacity=group["DesiredCapacity"],
        min_size=group["MinSize"],
        max_size=group["MaxSize"],
        healthy_count=sum(_healthy(one) and one.get("LifecycleState") == IN_SERVICE for one in instances),
        instance_count=len(instances),
        instances=shown,
        suspended_processes=sorted(plain(one["ProcessName"], WORD_MAX) for one in group.get("SuspendedProcesses", ())),
        status=plain(group.get("Status", ""), 2 * WORD_MAX),
    )


def _healthy(instance: Mapping[str, Any]) -> bool:
    """Say whether the group thinks a machine healthy."""
    return str(instance.get("HealthStatus", "")).lower() == "healthy"
