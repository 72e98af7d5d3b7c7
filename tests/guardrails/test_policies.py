"""Publishing policy sets and following leases over the real chain."""

import asyncio
import uuid
from typing import Any

import grpc
import grpc.aio
import pytest

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.config.v1 import policies_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kill_pb
from opsmesh.guardrails.v1 import policy_service_pb2 as pb
from services.mesh.client import refusal_of
from tests.guardrails.world import House, inventory, reason_of, rule

Event = audit_service_pb2.AuditEvent


def publishing(*rules: policies_pb2.PolicyRule, **fields: Any) -> pb.PublishPolicySetRequest:
    """Return a request to publish rules with the tests' inventory."""
    documents = policies_pb2.PolicySet(rules=rules or [rule("all", "ALLOW")])
    return pb.PublishPolicySetRequest(
        request_id=str(uuid.uuid4()), policy_set=documents, inventory=inventory(), **fields
    )


async def test_a_version_is_published_whole(home: House) -> None:
    """The active version has rules and inventory as published, who did it and when."""
    request = publishing()
    published = (await home.policies().PublishPolicySet(request)).policy_set
    assert (published.version, published.active, published.publisher) == (1, True, "human/operator")
    found = (await home.policies().GetPolicySet(pb.GetPolicySetRequest())).policy_set
    assert (found.policy_set, found.inventory) == (request.policy_set, request.inventory)
    found.ClearField("policy_set")
    found.ClearField("inventory")
    assert found == published


async def test_the_active_content_again_is_no_new_version(home: House) -> None:
    """Publishing what is active answers its version; the content of an older version is a new one."""
    assert await home.publish() == 1
    assert await home.publish() == 1
    assert await home.publish(rule("see", "OBSERVE")) == 2
    assert await home.publish() == 3


async def test_publishes_follow_each_other(home: House) -> None:
    """Twenty different publishes at once get twenty consecutive versions; the last one is active."""
    versions = await asyncio.gather(*(home.publish(rule(f"r{index}", "ALLOW")) for index in range(20)))
    assert sorted(versions) == list(range(1, 21))
    answer = await home.policies().ListPolicySets(pb.ListPolicySetsRequest(page_size=15))
    rest = await home.policies().ListPolicySets(
        pb.ListPolicySetsRequest(page_size=15, page_token=answer.next_page_token)
    )
    heads = [*answer.policy_sets, *rest.policy_sets]
    assert [one.version for one in heads] == list(range(20, 0, -1))
    assert [one.version for one in heads if one.active] == [20]
    assert not rest.next_page_token


async def test_validate_only_changes_nothing(home: House) -> None:
    """validate_only answers the version and digest that a publish would, without publishing or recording."""
    first = (await home.policies().PublishPolicySet(publishing(validate_only=True))).policy_set
    assert (first.version, first.active) == (1, False)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await home.policies().GetPolicySet(pb.GetPolicySetRequest())
    assert reason_of(raised.value) == "NO_POLICY_SET"
    assert home.audit.events == {}
    await home.publish()
    again = (await home.policies().PublishPolicySet(publishing(validate_only=True))).policy_set
    assert (again.version, again.active, again.digest) == (1, True, first.digest)


async def test_mistakes_are_told_by_field(home: House) -> None:
    """A set with mistakes is refused with a violation per mistake, and nothing is published."""
    wrong = publishing(rule("a", "ALLOW", environments=["prod"]), rule("a", "DENY", methods=["Reboot"]))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await home.policies().PublishPolicySet(wrong)
    refusal = refusal_of(raised.value)
    assert refusal is not None
    assert refusal.name == "POLICY_SET_INVALID"
    assert {one.field for one in refusal.violations} == {
        "policy_set.rules[1].rule_id",
        "policy_set.rules[0].match.environments[0]",
        "policy_set.rules[1].match.methods[0]",
    }
    assert await home.fetch("SELECT version FROM guardrails.policy_sets") == []


async def test_a_publish_is_on_record_before_and_after(home: House) -> None:
    """Audit has the intent and the outcome of a publish; without audit nothing is published."""
    await home.publish()
    events = await home.events(2)
    assert [(one.phase, one.outcome) for one in events] == [
        (Event.PHASE_INTENT, Event.OUTCOME_UNSPECIFIED),
        (Event.PHASE_OUTCOME, Event.OUTCOME_SUCCEEDED),
    ]
    home.audit.down = True
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await home.publish(rule("see", "OBSERVE"))
    assert reason_of(raised.value) == "AUDIT_UNAVAILABLE"
    assert len(await home.fetch("SELECT version FROM guardrails.policy_sets")) == 1


async def test_a_version_that_is_not_there(home: House) -> None:
    """An unknown version is NOT_FOUND, an old one stays readable and is not active."""
    await home.publish()
    await home.publish(rule("see", "OBSERVE"))
    old = (await home.policies().GetPolicySet(pb.GetPolicySetRequest(version=1))).policy_set
    assert (old.version, old.active) == (1, False)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await home.policies().GetPolicySet(pb.GetPolicySetRequest(version=3))
    assert reason_of(raised.value) == "NOT_FOUND"


async def test_guardrails_cannot_change_what_is_published(home: House) -> None:
    """The service's own role may neither change nor delete a version."""
    await home.publish()
    for statement in ("UPDATE guardrails.policy_sets SET digest = ''", "DELETE FROM guardrails.policy_sets"):
        with pytest.raises(Exception, match="permission denied"):
            await home.fetch(statement)


async def test_a_lease_says_what_holds(home: House) -> None:
    """PollLease answers the active version, 0 before the first."""
    poll = kill_pb.PollLeaseRequest(instance="test")
    assert (await home.leases().PollLease(poll)).lease.policy_set_version == 0
    await home.publish()
    lease = (await home.leases().PollLease(poll)).lease
    assert (lease.policy_set_version, lease.kill_epoch) == (1, 0)
    assert lease.lease_time.seconds > 0


async def test_followers_hear_of_a_publish(home: House) -> None:
    """WatchLease sends one lease at once and one when a policy set is published."""
    stream = home.leases().WatchLease(kill_pb.WatchLeaseRequest(instance="test"))
    async with asyncio.timeout(10):
        first = await stream.read()
        await home.publish()
        second = await stream.read()
    stream.cancel()
    assert isinstance(first, kill_pb.WatchLeaseResponse)
    assert isinstance(second, kill_pb.WatchLeaseResponse)
    assert (first.lease.policy_set_version, second.lease.policy_set_version) == (0, 1)
