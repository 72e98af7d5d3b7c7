"""Groups of machines, on moto's server: alone, and through a whole gateway."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import yaml

from opsmesh.policy.v1 import policy_pb2
from opsmesh.tools.autoscaling.v1 import autoscaling_tool_service_pb2 as pb
from opsmesh.tools.autoscaling.v1 import autoscaling_tool_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.gateway import backends
from services.gateway.domain import State
from services.gateway.gate import Gate, guarding
from services.gateway.grants import METADATA_KEY
from services.gateway.tools.autoscaling import AutoscalingTools, capacity_ending, falsehood
from services.gateway.tools.aws import AwsError
from services.gateway.tools.toolbox import EffectFailedError
from services.mesh import precondition
from services.mesh.call import working
from services.mesh.errors import Refusal, from_rpc_error
from services.mesh.tools import find_tool
from tests.gateway import aws
from tests.gateway.web import Asked, web
from tests.gateway.world import Mesh
from tests.mesh.world import ROOT

TARGET = "asg:demo/web"
SET = "opsmesh.tools.autoscaling.v1.AutoscalingToolService/SetDesiredCapacity"
FIELDS = find_tool(SET).spec.precondition_fields
BEFORE = {"group_arn": "x", "desired_capacity": "2", "min_size": "1", "max_size": "20"}
MISSING = "no Auto Scaling group nowhere"


@pytest.fixture(scope="module")
def cloud() -> Iterator[str]:
    """Give the address of an AWS."""
    with aws.aws() as url:
        yield url


@pytest.fixture
def group(cloud: str) -> str:
    """Give that AWS with a group of two machines."""
    aws.make_group(cloud)
    return cloud


def tools(folder: Path, *entries: dict[str, Any]) -> AutoscalingTools:
    """Return the family on these groups."""
    path = folder / "backends.yaml"
    path.write_text(yaml.safe_dump({"autoscaling": list(entries)}))
    return AutoscalingTools(backends.load(path, folder).groups)


@pytest.fixture
async def family(group: str, tmp_path: Path) -> AsyncIterator[AutoscalingTools]:
    """Give the family on the group, in a call with thirty seconds."""
    gone = aws.entry(group, tmp_path, "asg:demo/gone", "nowhere")
    found = tools(tmp_path, aws.entry(group, tmp_path, TARGET), gone)
    with working("service/gateway", SET, 30):
        yield found
    await found.close()


def change(desired: int, added: int = 0, removed: int = 0) -> pb.SetDesiredCapacityRequest:
    """Return a request."""
    return pb.SetDesiredCapacityRequest(
        request_id=str(uuid.uuid4()),
        target_id=TARGET,
        desired_capacity=desired,
        instances_added=added,
        instances_removed=removed,
        reason="a test",
    )


async def found(family: AutoscalingTools) -> dict[str, str]:
    """Return the precondition as guardrails and the gateway read it."""
    answer = await family.describe_group(pb.DescribeGroupRequest(target_id=TARGET), {})
    return dict(precondition.snapshot(answer, FIELDS))


async def test_a_group_is_described(family: AutoscalingTools) -> None:
    """Bounds, wanted number, machines."""
    answer = await family.describe_group(pb.DescribeGroupRequest(target_id=TARGET), {})
    assert (answer.min_size, answer.desired_capacity, answer.max_size) == (1, 2, 20)
    assert (answer.instance_count, answer.healthy_count) == (2, 2)
    assert answer.group_arn.startswith(f"arn:aws:autoscaling:{aws.REGION}:")
    assert {(one.lifecycle_state, one.healthy, one.zone) for one in answer.instances} == {
        ("InService", True, f"{aws.REGION}a")
    }


async def test_a_group_that_is_not_there_is_refused(family: AutoscalingTools) -> None:
    """And a target that has none is told the lines to add."""
    with pytest.raises(Refusal, match=f"BACKEND_REFUSED.*{MISSING}"):
        await family.describe_group(pb.DescribeGroupRequest(target_id="asg:demo/gone"), {})
    with pytest.raises(Refusal, match="BACKEND_MISSING") as caught:
        await family.describe_group(pb.DescribeGroupRequest(target_id="asg:demo/other"), {})
    assert yaml.safe_load(caught.value.metadata["lines"])["autoscaling"][0]["target_id"] == "asg:demo/other"


@pytest.mark.parametrize(("desired", "added", "removed"), [(5, 3, 0), (1, 0, 1), (2, 0, 0)])
async def test_the_wanted_number_changes(
    family: AutoscalingTools, group: str, desired: int, added: int, removed: int
) -> None:
    """Up, down, and not at all."""
    answer = await family.set_desired_capacity(change(desired, added, removed), await found(family))
    assert (answer.previous_capacity, answer.desired_capacity) == (2, desired)
    assert aws.capacity(group) == desired


@pytest.mark.parametrize(
    ("desired", "added", "removed"), [(5, 0, 0), (5, 2, 0), (5, 4, 0), (1, 1, 0), (5, 3, 1), (1, 0, 2), (2, 1, 1)]
)
async def test_a_wrong_size_of_the_change_changes_nothing(
    family: AutoscalingTools, group: str, desired: int, added: int, removed: int
) -> None:
    """What people and policy went by must be true."""
    with pytest.raises(Refusal, match=f"BLAST_RADIUS_WRONG.*from 2 to {desired}"):
        await family.set_desired_capacity(change(desired, added, removed), await found(family))
    assert aws.capacity(group) == 2


async def test_a_number_out_of_the_groups_bounds_is_refused(family: AutoscalingTools, group: str) -> None:
    """The refusal says which they are."""
    for request in (change(50, 48), change(0, 0, 2)):
        with pytest.raises(Refusal, match="INVALID_ARGUMENT") as caught:
            await family.set_desired_capacity(request, await found(family))
        assert caught.value.violations[0].description == "the group takes from 1 to 20"
    assert aws.capacity(group) == 2


def test_the_risk_goes_by_the_size() -> None:
    """Taking machines away weighs more than adding them."""
    spec = find_tool(SET).spec

    def risk(request: pb.SetDesiredCapacityRequest) -> int:
        passed = [one.risk for one in spec.blast_radius if getattr(request, one.field) > one.above]
        return max([policy_pb2.RISK_LOW, *passed])

    assert risk(change(4, added=2)) == policy_pb2.RISK_LOW
    assert risk(change(5, added=3)) == policy_pb2.RISK_MEDIUM
    assert risk(change(20, added=11)) == policy_pb2.RISK_HIGH
    assert risk(change(1, removed=1)) == policy_pb2.RISK_MEDIUM
    assert risk(change(1, removed=3)) == policy_pb2.RISK_HIGH
    assert risk(change(0, removed=11)) == policy_pb2.RISK_CRITICAL
    assert falsehood(change(4, added=2), 2) == ""


@pytest.mark.parametrize(
    ("desired", "arn", "state"),
    [(5, "arn", State.SUCCEEDED), (2, "arn", State.FAILED), (3, "arn", State.UNKNOWN), (5, "other", State.UNKNOWN)],
)
def test_how_a_change_ended_is_read_off_the_group(desired: int, arn: str, state: State) -> None:
    """The number asked for, the one before, or somebody else's; another group tells nothing."""
    now = pb.DescribeGroupResponse(group_arn=arn, desired_capacity=desired)
    assert capacity_ending(5, {"group_arn": "arn", "desired_capacity": "2"}, now).state is state


async def test_the_last_look_is_taken_before_the_first_byte(family: AutoscalingTools, group: str) -> None:
    """What the gate refuses never leaves, and the refusal is the caller's answer."""
    before, looks = await found(family), list[str]()

    def look() -> None:
        looks.append("looked")
        raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT)

    with guarding(Gate(look)), pytest.raises(Refusal, match="INVALID_ARGUMENT"):
        await family.set_desired_capacity(change(5, 3), before)
    assert (looks, aws.capacity(group)) == (["looked"], 2)
    with guarding(Gate(lambda: looks.append("again"))):
        await family.set_desired_capacity(change(5, 3), before)
    assert (looks, aws.capacity(group)) == (["looked", "again"], 5)


def error(code: str) -> bytes:
    """Return an error as AWS writes it."""
    words = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>no</Message></Error>"
    return f"<ErrorResponse>{words}<RequestId>1</RequestId></ErrorResponse>".encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, error("Throttling"), Refusal, "BACKEND_UNAVAILABLE.*Throttling"),
        (403, error("AccessDenied"), Refusal, "BACKEND_UNAVAILABLE.*AccessDenied"),
        (400, error("ScalingActivityInProgress"), Refusal, "BACKEND_UNAVAILABLE.*InProgress"),
        (400, error("ValidationError"), EffectFailedError, "AWS refuses"),
        # Whether it happened is not known: it is resolved later.
        (503, error("ServiceUnavailable"), AwsError, "ServiceUnavailable"),
        (500, b"<html>", Exception, None),
        (200, b"no xml", Exception, None),
        (200, b"<" * 5_000_000, Exception, "too much"),
    ],
)
async def test_what_aws_may_answer(
    tmp_path: Path, status: int, body: bytes, kind: type[Exception], words: str | None
) -> None:
    """Asked once, whatever it says."""
    async with web(lambda _: (status, body)) as server:
        family = tools(tmp_path, aws.entry(server.url, tmp_path, TARGET))
        with working("service/gateway", SET, 10), pytest.raises(kind, match=words) as caught:
            await family.set_desired_capacity(change(5, 3), BEFORE)
        assert kind is not Exception or not isinstance(caught.value, (Refusal, EffectFailedError))
        assert len(server.asked) == 1
        await family.close()


async def test_nothing_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither keys nor token, profile, region, address, proxy or mode."""
    theirs = {
        "AWS_ACCESS_KEY_ID": "AKIATHEIRS",
        "AWS_SECRET_ACCESS_KEY": "theirs",
        "AWS_SESSION_TOKEN": "theirs",
        "AWS_PROFILE": "theirs",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_AUTO_SCALING": "http://127.0.0.1:9",
        "AWS_DEFAULTS_MODE": "auto",
        "AWS_MAX_ATTEMPTS": "9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    asked: list[Asked] = []

    def respond(one: Asked) -> tuple[int, bytes]:
        asked.append(one)
        return 403, error("AccessDenied")

    async with web(respond) as server:
        family = tools(tmp_path, aws.entry(server.url, tmp_path, TARGET))
        with working("service/gateway", SET, 10), pytest.raises(Refusal, match="BACKEND_UNAVAILABLE"):
            await family.describe_group(pb.DescribeGroupRequest(target_id=TARGET), {})
        await family.close()
    (one,) = asked
    assert f"Credential={aws.KEY_ID}/" in one.headers["authorization"]
    assert f"/{aws.REGION}/autoscaling/" in one.headers["authorization"]
    assert "x-amz-security-token" not in one.headers
    assert aws.SECRET not in str(one)


async def test_an_aws_that_hangs_holds_up_nobody_else(group: str, tmp_path: Path) -> None:
    """More calls than there are threads hang; another account answers meanwhile."""
    async with web(lambda _: None) as deaf:
        slow, quick = aws.entry(deaf.url, tmp_path, "asg:demo/slow"), aws.entry(group, tmp_path, TARGET)
        family = tools(tmp_path, slow, quick)

        async def hang() -> None:
            with working("service/gateway", SET, 8), pytest.raises(Refusal, match="BACKEND_UNAVAILABLE"):
                await family.describe_group(pb.DescribeGroupRequest(target_id="asg:demo/slow"), {})

        hanging = [asyncio.create_task(hang()) for _ in range(6)]
        with working("service/gateway", SET, 30):
            await family.describe_group(pb.DescribeGroupRequest(target_id=TARGET), {})
        assert not any(one.done() for one in hanging)
        await asyncio.gather(*hanging)
        await family.close()


def test_a_gateway_without_groups_does_not_load_boto3() -> None:
    """It would cost 30 MB; only a first call loads it."""
    program = "import sys, services.gateway.main; print(sorted({one.partition('.')[0] for one in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "'services'" in done.stdout
    assert "boto" not in done.stdout


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, cloud: str) -> Mesh:
    """Give a running gateway that reaches the group."""
    await mesh.stop()
    mesh.backends = {"autoscaling": [aws.entry(cloud, mesh.folder, TARGET)]}
    await mesh.start()
    return mesh


async def resize(gateway: Mesh, request: pb.SetDesiredCapacityRequest, **changes: Any) -> Any:
    """Read the precondition, mint a grant with it, and call."""
    async with gateway.channel() as channel:
        stub = rpc.AutoscalingToolServiceStub(channel)
        answer = await stub.DescribeGroup(pb.DescribeGroupRequest(target_id=TARGET))
        before = dict(precondition.snapshot(answer, FIELDS)) | changes
        grant = gateway.make(request, before, SET, target_id=TARGET, fence=1)
        try:
            return await stub.SetDesiredCapacity(request, metadata=((METADATA_KEY, gateway.sign(grant)),))
        except grpc.aio.AioRpcError as refused:
            raise from_rpc_error(refused) or refused from None


async def test_a_granted_change_is_made_once(gateway: Mesh, group: str) -> None:
    """The same request again gets the stored answer, also when the group has changed since."""
    request = change(4, added=2)
    first = await resize(gateway, request)
    assert (first.previous_capacity, aws.capacity(group)) == (2, 4)
    aws.admin(group).set_desired_capacity(AutoScalingGroupName=aws.GROUP, DesiredCapacity=3)
    assert await resize(gateway, request) == first
    assert aws.capacity(group) == 3


async def test_a_group_that_has_changed_since_is_left_alone(gateway: Mesh, group: str) -> None:
    """The current number is the precondition."""
    with pytest.raises(Refusal, match=r"STATE_CHANGED.*desired_capacity was 7, is 2"):
        await resize(gateway, change(9, added=2), desired_capacity="7")
    assert aws.capacity(group) == 2


async def test_a_wrong_size_is_refused_before_the_act(gateway: Mesh, group: str) -> None:
    """Nothing was started, so the same may be asked again, rightly."""
    request = change(10, added=1)
    with pytest.raises(Refusal, match="BLAST_RADIUS_WRONG"):
        await resize(gateway, request)
    effect = await gateway.effect(request, SET)
    assert (effect.state, effect.reason) == (effect.STATE_NOT_STARTED, "BLAST_RADIUS_WRONG")
    assert aws.capacity(group) == 2
