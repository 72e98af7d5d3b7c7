"""`opsmesh approvals`: a person sees what the bytes say, and answers for exactly those."""

import json
import uuid
from pathlib import Path

from opsmesh.guardrails.v1 import approval_service_pb2 as approvals
from tests.cli import guarded_fakes
from tests.cli.mesh import Mesh

FIRST = str(uuid.UUID(int=1))


def put(mesh: Mesh) -> approvals.Approval:
    """Give the mesh one pending approval."""
    made = guarded_fakes.approval(1)
    mesh.approvals.asked.append(made)
    return made


async def test_show_tells_everything_a_yes_would_mean(mesh: Mesh) -> None:
    """`show` names the exact RPC, every argument, target, risk, blast radius, precondition, people, policy and time."""
    made = put(mesh)
    done = await mesh.run("approvals", "show", FIRST)
    assert (done.code, done.err) == (0, "")
    said = " ".join(done.out.split())
    for fact in (
        guarded_fakes.RESTART,
        f"request_id {made.request_id}",
        "target_id svc:production/checkout",
        "reason checkout answers 503",
        "environment production",
        "region eu-west-1",
        "risk HIGH",
        "why this risk the inventory says HIGH",
        "affects 2: svc:production/checkout, svc:production/shop",
        "precondition process_id=41, state=STATE_RUNNING",
        "may not approve service/automation, human/operator",
        "0 of 2 people, each of these groups through another: leads",
        "rule risky-writes, set 3",
        "policy yes a person must approve",
        "reason noise checkout answers 503",
        f"digest {made.short_digest}",
        "left)",
        f"opsmesh approvals approve {FIRST} --digest {made.short_digest} --state {mesh.state} --as NAME",
    ):
        assert fact in said


async def test_show_with_json_is_the_resource(mesh: Mesh) -> None:
    """Scripts get the approval itself."""
    put(mesh)
    done = await mesh.run("approvals", "show", FIRST, "--json")
    assert done.answer["approval_id"] == FIRST
    assert done.answer["state"] == "STATE_PENDING"


async def test_what_is_shown_is_what_would_be_sent(mesh: Mesh) -> None:
    """Bytes that do not have the digest they claim are not shown as if they had."""
    put(mesh).request += b"\x1a\x01x"
    done = await mesh.run("approvals", "show", FIRST)
    assert done.code == 1
    assert "what it shows is not what would be sent" in done.err
    assert "NEXT: do not approve it" in done.err


async def test_list_says_who_must_answer_and_how_long_there_is(mesh: Mesh) -> None:
    """`list --pending` shows only what waits, with digest and remaining time."""
    made = put(mesh)
    mesh.approvals.asked.append(guarded_fakes.approval(2))
    mesh.approvals.asked[1].state = approvals.Approval.STATE_EXPIRED
    done = await mesh.run("approvals", "list", "--pending")
    assert made.short_digest in done.out
    assert "4m" in done.out
    assert str(uuid.UUID(int=2)) not in done.out
    both = await mesh.run("approvals", "list", "--approval-state", "expired", "--json")
    assert [one["approval_id"] for one in both.answer["approvals"]] == [str(uuid.UUID(int=2))]


async def test_two_people_approve_by_digest(mesh: Mesh) -> None:
    """With --digest nothing is asked; the first yes leaves it pending, the second of another person approves it."""
    digest = put(mesh).short_digest
    first = await mesh.run("approvals", "approve", FIRST, "--digest", digest, "--as", "approver", "--comment", "ok")
    assert first.code == 0
    assert "is PENDING" in first.out
    assert "1 of 2 people" in first.out
    second = await mesh.run("approvals", "approve", FIRST, "--digest", digest, "--as", "approver2", "--json")
    assert second.answer["state"] == "STATE_APPROVED"
    assert [vote["person"] for vote in second.answer["votes"]] == ["human/approver", "human/approver2"]
    assert second.answer["votes"][0]["comment"] == "ok"


async def test_a_refused_answer_names_the_next_step(mesh: Mesh) -> None:
    """The requester's yes, and a yes to another digest, are refused with what to do."""
    digest = put(mesh).short_digest
    own = await mesh.run("approvals", "approve", FIRST, "--digest", digest)
    assert own.code == 1
    assert "APPROVER_IS_REQUESTER: human/operator asked for" in own.err
    assert f"NEXT: ask another person: opsmesh approvals approve {FIRST} --as NAME" in own.err
    other = await mesh.run("approvals", "approve", FIRST, "--digest", "0" * 12, "--as", "approver")
    assert f"NEXT: look again at what it asks for: opsmesh approvals show {FIRST}" in other.err


async def test_without_a_terminal_nothing_is_answered_unseen(mesh: Mesh) -> None:
    """Without --digest and terminal, the approval is shown, nothing is answered, and the exact command is named."""
    digest = put(mesh).short_digest
    done = await mesh.run("approvals", "approve", FIRST, "--as", "approver")
    assert done.code == 1
    assert "svc:production/checkout" in done.out
    state = f"--state {mesh.state} --as approver"
    assert f"NEXT: opsmesh approvals approve {FIRST} --digest {digest} {state}" in done.err
    assert not mesh.approvals.asked[0].votes


async def test_at_a_terminal_a_person_confirms_what_was_shown(mesh: Mesh) -> None:
    """At a terminal the sheet comes first, then the question; only a yes answers."""
    digest = put(mesh).short_digest
    no = await mesh.run_at_terminal("n", "approvals", "approve", FIRST, "--as", "approver")
    assert no.code == 1
    assert f"approve exactly this, digest {digest}?" in no.out
    assert "nothing was answered" in no.err
    assert not mesh.approvals.asked[0].votes
    yes = await mesh.run_at_terminal("y", "approvals", "reject", FIRST, "--as", "approver")
    assert yes.code == 0
    assert "is REJECTED" in yes.out


async def test_amend_changes_fields_and_shows_the_difference(mesh: Mesh) -> None:
    """`amend --set` sends the old request with the new value under the same request_id, and shows the new approval."""
    made = put(mesh)
    words = ("approvals", "amend", FIRST, "--digest", made.short_digest)
    done = await mesh.run(*words, "--set", "reason=only the till", "--comment", "less", "--as", "approver")
    assert done.code == 0
    assert str(uuid.UUID(int=77)) in done.out
    assert "noise" in done.out
    (request,) = mesh.approvals.amended
    wanted = {"request_id": made.request_id, "target_id": "svc:production/checkout", "reason": "only the till"}
    assert json.loads(request.request_json) == wanted


async def test_amend_takes_a_whole_request_from_a_file(mesh: Mesh, tmp_path: Path) -> None:
    """`amend --json-request` sends the file; wrong fields and no change at all are told before anything is sent."""
    made = put(mesh)
    file = tmp_path / "request.json"
    file.write_text('{"target_id": "svc:demo/checkout", "reason": "other"}')
    words = ("approvals", "amend", FIRST, "--digest", made.short_digest)
    assert (await mesh.run(*words, "--json-request", str(file), "--json")).answer["amends_approval_id"] == FIRST
    assert json.loads(mesh.approvals.amended[0].request_json)["target_id"] == "svc:demo/checkout"
    assert (await mesh.run(*words)).code == 2
    unknown = await mesh.run(*words, "--set", "host=web-1")
    assert (unknown.code, "RestartWorkload takes request_id, target_id, reason" in unknown.err) == (2, True)
    assert len(mesh.approvals.amended) == 1


async def test_watch_follows_again_when_the_stream_ends(mesh: Mesh) -> None:
    """`watch` writes a line for each change, signs of life left out, and goes on when a service restarts."""
    put(mesh)
    before = mesh.approvals.watched
    done = await mesh.run("approvals", "watch", "--seconds", "3.5", "--json")
    assert (done.code, done.err) == (0, "")
    streams = mesh.approvals.watched - before
    assert streams >= 2
    assert [json.loads(line)["approval_id"] for line in done.out.splitlines()] == [FIRST] * streams
    line = (await mesh.run("approvals", "watch", "--seconds", "0.5")).out.splitlines()[0]
    assert "RestartWorkload on svc:production/checkout" in line
    assert "left" in line
