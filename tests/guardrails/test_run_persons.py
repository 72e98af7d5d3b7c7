"""Who asked in a chat: a good token makes its person a requester, without one an approver more is needed."""

from typing import Any

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from opsmesh.guardrails.v1 import approval_service_pb2 as approval_pb
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.router.v1 import identity_pb2
from tests.guardrails import running
from tests.guardrails.running import PERSON, act, chat, claim, lock, publish, refused, register, token, uid
from tests.guardrails.world import CHECKOUT, NOTICE, VAULT, Answer, Context, House, failures, notice, restart, rule

ASK = rule("ask", "REQUIRE_APPROVAL", environments=["demo"])


async def execution(home: House, incident_id: str, identity_token: bytes = b"", **fields: Any) -> Context:
    """Lock checkout for a new execution on an incident; return the context of its step."""
    execution_id = uid()
    await home.fetch("UPDATE guardrails.locks SET expire_time = now() RETURNING true")
    await home.lock(fields.pop("target_id", CHECKOUT), execution_id)
    return Context(incident_id=incident_id, execution_id=execution_id, identity_token=identity_token, **fields)


async def needed(home: House, answer: Answer) -> tuple[int, list[str]]:
    """Return how many people must approve, and who may not."""
    assert answer.judgement.verdict == pb.VERDICT_REQUIRE_APPROVAL, failures(answer)
    assert not answer.grant
    request = approval_pb.GetApprovalRequest(approval_id=answer.approval_id)
    approval = (await home.approvals().GetApproval(request)).approval
    assert not approval.context.identity_token
    return approval.approvers_needed, list(approval.requesters)


async def approve(home: House, answer: Answer, *names: str) -> str:
    """Let people approve; return the state after the last."""
    for name in names:
        request = approval_pb.ApproveRequest(
            request_id=uid(), approval_id=answer.approval_id, request_digest=answer.judgement.request_digest
        )
        approval = (await home.approvals(name).Approve(request)).approval
    return approval_pb.Approval.State.Name(approval.state)


async def test_a_proved_person_is_a_requester_and_policy_stays(home: House) -> None:
    """With a good token an execution is judged as policy says, and the person of the token may not approve."""
    await publish(home)
    incident, _ = chat(home)
    allowed = await home.authorize(restart(), await execution(home, incident, token(home, incident)))
    assert failures(allowed) == {}
    assert home.opened(allowed.grant).on_behalf_of == PERSON
    await publish(home, ASK)
    asked = await home.authorize(restart(), await execution(home, incident, token(home, incident)))
    assert await needed(home, asked) == (1, ["service/automation", PERSON])
    assert await refused(approve(home, asked, "operator")) == "APPROVER_IS_REQUESTER"
    assert await approve(home, asked, "approver") == "STATE_APPROVED"


async def test_without_a_token_one_approver_more(home: House) -> None:
    """ALLOW needs one, n need n + 1, CRITICAL not fewer than two; OBSERVE and DENY stay; telling people is free."""
    await publish(home)
    incident, _ = chat(home, CHECKOUT, VAULT)
    allowed = await home.authorize(restart(), await execution(home, incident))
    assert await needed(home, allowed) == (1, ["service/automation"])
    (said,) = (check.detail for check in allowed.judgement.checks if check.name == "policy")
    assert "one approver more" in said
    critical = await home.authorize(restart(VAULT), await execution(home, incident, target_id=VAULT))
    assert (await needed(home, critical))[0] == 2
    assert (await home.authorize(notice(), await execution(home, incident), method=NOTICE)).grant
    await publish(home, ASK)
    context, request = await execution(home, incident), restart()
    asked = await home.authorize(request, context)
    assert (await needed(home, asked))[0] == 2
    assert await approve(home, asked, "approver") == "STATE_PENDING"
    assert not (await home.authorize(request, context)).grant
    assert await approve(home, asked, "approver2") == "STATE_APPROVED"
    assert (await home.authorize(request, context)).grant
    for verdict in ("OBSERVE", "DENY"):
        await publish(home, rule("so", verdict))
        answer = await home.authorize(restart(), await execution(home, incident))
        assert answer.judgement.verdict == pb.Verdict.Value(f"VERDICT_{verdict}")
        assert not answer.approval_id


async def test_what_is_not_of_a_chat_is_as_ever(home: House) -> None:
    """An alert's incident needs no token, and a person acts on a chat's with the own certificate."""
    await publish(home)
    assert (await home.authorize(restart(), await home.ready())).grant
    incident, _ = chat(home)
    await home.fetch("UPDATE guardrails.locks SET expire_time = now() RETURNING true")
    await home.lock(name="operator")
    assert (await home.authorize(restart(), Context(incident_id=incident), name="operator")).grant


async def test_a_token_that_is_over(home: House) -> None:
    """It proves nothing any more, but whom it names may still not approve; the approval asked for before it is kept."""
    await publish(home, ASK)
    incident, _ = chat(home)
    context, request = await execution(home, incident, token(home, incident)), restart()
    asked = await home.authorize(request, context)
    assert (await needed(home, asked))[0] == 1
    context.identity_token = token(home, incident, age=7200)
    again = await home.authorize(request, context)
    assert again.approval_id == asked.approval_id
    assert await needed(home, again) == (2, ["service/automation", PERSON])


@pytest.mark.parametrize(
    "wrong",
    ["forged", "other conversation", "other message", "used on another", "not a chat", "too long", "not yet", "nobody"],
)
async def test_a_token_that_proves_nobody(home: House, wrong: str) -> None:
    """A token that is not the router's, or for another message, denies actions and registers no run."""
    await publish(home)
    incident, _ = chat(home)
    other, _ = chat(home)
    tokens = {
        "forged": lambda: token(home, incident, key=Ed25519PrivateKey.generate()),
        "other conversation": lambda: token(home, incident, conversation_id=uid()),
        "other message": lambda: token(home, incident, message_digest=bytes(32)),
        "used on another": lambda: token(home, other),
        "not a chat": lambda: token(home, incident),
        "too long": lambda: token(home, incident, lifetime=86400),
        "not yet": lambda: token(home, incident, age=-600),
        "nobody": lambda: token(home, incident, person="service/router"),
    }
    made = tokens[wrong]()
    if wrong == "not a chat":
        incident = home.ingest.open(CHECKOUT)
    answer = await home.authorize(restart(), await execution(home, incident, made))
    assert failures(answer) == {"sanity": "IDENTITY_TOKEN_INVALID"}
    assert not answer.grant
    assert await refused(register(home, incident, CHECKOUT, identity_token=made)) == "IDENTITY_TOKEN_INVALID"


async def test_a_grants_key_signs_no_token(home: House) -> None:
    """What guardrails itself signs is no token, nor are bytes that are none, nor a signature without the prefix."""
    await publish(home)
    incident, _ = chat(home)
    good = identity_pb2.SignedIdentity.FromString(token(home, incident))
    bare = identity_pb2.SignedIdentity(identity=good.identity, signature=running.router_key(home).sign(good.identity))
    key = load_pem_private_key((home.world.pki / "grant.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    unknown = identity_pb2.SignedIdentity(identity=good.identity + b"\xfa\x01\x03abc", signature=good.signature)
    for made in (token(home, incident, key=key), bare.SerializeToString(), unknown.SerializeToString(), b"\xff" * 40):
        assert await refused(register(home, incident, CHECKOUT, identity_token=made)) == "IDENTITY_TOKEN_INVALID"


async def test_a_run_keeps_its_person(home: House) -> None:
    """What was proved at registration holds for the run and those below it; agents cannot say otherwise."""
    await publish(home)
    incident, _ = chat(home)
    run = await register(home, incident, CHECKOUT, identity_token=token(home, incident))
    assert run.requester == PERSON
    child = await register(home, incident, CHECKOUT, parent_run_id=run.run_id)
    assert child.requester == PERSON
    await claim(home, run.run_id)
    held = await lock(home, run.run_id)
    answer = await act(home, run, on_behalf_of="human/approver")
    assert home.opened(answer.grant).on_behalf_of == PERSON
    await running.unlock(home, held)
    await lock(home, child.run_id)
    await publish(home, ASK)
    asked = await act(home, child, on_behalf_of="human/approver")
    assert await needed(home, asked) == (1, ["service/agents", PERSON])
    assert await refused(approve(home, asked, "operator")) == "APPROVER_IS_REQUESTER"


async def test_a_run_of_a_chat_without_a_person(home: House) -> None:
    """Without a token, or with one that was over, a run asks one approver more; one beside its actions helps not."""
    await publish(home)
    incident, _ = chat(home)
    bare = await register(home, incident, CHECKOUT)
    late = await register(home, incident, CHECKOUT, identity_token=token(home, incident, age=7200))
    assert bare.requester == late.requester == "service/agents"
    for run, requesters in ((bare, ["service/agents"]), (late, ["service/agents", PERSON])):
        await claim(home, run.run_id)
        held = await lock(home, run.run_id)
        answer = await act(home, run, identity_token=token(home, incident))
        assert await needed(home, answer) == (1, requesters)
        await running.unlock(home, held)
        await home.fetch("UPDATE guardrails.claims SET expire_time = now() RETURNING true")


async def test_whom_a_service_names_may_not_approve(home: House) -> None:
    """A person who started a run with the own certificate is named by agents: it bars them from approving, no more."""
    await publish(home, ASK)
    run = await running.working(home)
    asked = await act(home, run, on_behalf_of="human/approver")
    assert await needed(home, asked) == (1, ["service/agents", "human/approver"])
    with pytest.raises(grpc.aio.AioRpcError):
        await approve(home, asked, "approver")
