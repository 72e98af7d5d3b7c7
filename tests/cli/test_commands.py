"""The command against a small mesh behind real mTLS: what it prints, what it asks for, and how it ends."""

import base64
import json
import uuid
from pathlib import Path

from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.ingest.v1 import signal_pb2
from services.local.certs import ensure
from tests.cli import fakes
from tests.cli.mesh import Mesh, run


async def test_json_is_the_answer_and_nothing_else(mesh: Mesh) -> None:
    """`--json` prints proto3 JSON with default values and proto field names."""
    mesh.ingest.incidents.append(fakes.incident(1))
    done = await mesh.run("incidents", "list", "--json")
    assert (done.code, done.err) == (0, "")
    assert set(done.answer) == {"incidents", "next_page_token"}
    (one,) = done.answer["incidents"]
    assert one["state"] == "STATE_RUNNING"
    assert one["signal_count"] == "3"
    assert (one["decision_id"], one["firing"], one["targets"]) == ("", False, [])


async def test_show_prints_the_resource(mesh: Mesh) -> None:
    """`show --json` is the resource itself."""
    mesh.ingest.incidents.append(fakes.incident(1))
    done = await mesh.run("incidents", "show", str(uuid.UUID(int=1)), "--json")
    assert done.answer["incident_id"] == str(uuid.UUID(int=1))


async def test_lists_page_through_up_to_the_limit(mesh: Mesh) -> None:
    """A list fetches as many pages as its limit takes, and says where to go on."""
    mesh.ingest.incidents += [fakes.incident(number) for number in range(130)]
    whole = await mesh.run("incidents", "list", "--limit", "1000", "--json")
    assert len(whole.answer["incidents"]) == 130
    assert whole.answer["next_page_token"] == ""
    part = await mesh.run("incidents", "list", "--limit", "100", "--json")
    assert len(part.answer["incidents"]) == 100
    assert mesh.ingest.page_sizes[-3:] == [100, 60, 20]
    token = part.answer["next_page_token"]
    rest = await mesh.run("incidents", "list", "--limit", "100", "--page-token", token, "--json")
    assert [one["incident_id"] for one in rest.answer["incidents"]] == [str(uuid.UUID(int=n)) for n in range(100, 130)]


async def test_a_table_shows_strangers_words_as_words(mesh: Mesh) -> None:
    """What a sender wrote is neither markup nor a control sequence on the operator's terminal."""
    mesh.ingest.incidents.append(fakes.incident(1))
    done = await mesh.run("incidents", "list")
    assert done.code == 0
    assert "[red]checkout[/red] 1 is down" in done.out
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out


async def test_options_before_and_after_the_command(mesh: Mesh) -> None:
    """--state, --as and --json are accepted before the group, before and after the command."""
    mesh.ingest.incidents.append(fakes.incident(1))
    state = str(mesh.state)
    before = await run("--state", state, "--as", "approver", "--json", "incidents", "list")
    between = await run("incidents", "--state", state, "--json", "list")
    after = await run("incidents", "list", "--state", state, "--as", "approver2", "--json")
    assert before.answer == between.answer == after.answer


async def test_a_refusal_says_what_where_and_next(mesh: Mesh) -> None:
    """A refused call tells its reason, the place and a next step on stderr, and exits with 1."""
    done = await mesh.run("incidents", "show", str(uuid.UUID(int=9)), "--json")
    assert (done.code, done.out) == (1, "")
    what, where, following = done.err.splitlines()
    assert what == f"NOT_FOUND: there is no incident {uuid.UUID(int=9)}"
    assert where.startswith("WHERE: service ingest, method opsmesh.ingest.v1.IngestService/GetIncident")
    assert following == "NEXT: list what exists: opsmesh incidents list"


async def test_wrong_fields_are_named(mesh: Mesh) -> None:
    """A request that breaks its bounds is refused with the field."""
    done = await mesh.run("incidents", "show", "not-an-id")
    assert done.code == 1
    assert "INVALID_ARGUMENT" in done.err
    assert "  incident_id: " in done.err


async def test_dead_letters_are_handed_in_again_or_thrown_away(mesh: Mesh) -> None:
    """Each with its result; exit code 1 when one stays; without a command they are listed."""
    ids = [str(uuid.UUID(int=number)) for number in (1, 2)]
    again = await mesh.run("signals", "dead-letters", "redrive", *ids, "--reason", "parser mended")
    assert again.code == 1
    assert "id: none" in again.out
    assert (await mesh.run("signals", "dead-letters", "redrive", ids[0], "--reason", "r")).code == 0
    assert (await mesh.run("signals", "dead-letters", "discard", *ids, "--reason", "a test", "--json")).code == 0
    assert [(list(one.delivery_ids), one.reason) for one in mesh.ingest.asked] == [
        (ids, "parser mended"),
        (ids[:1], "r"),
        (ids, "a test"),
    ]
    refused = await mesh.run("signals", "dead-letters", "discard", *ids, "--reason", "r", "--as", "approver")
    assert "PERMISSION_DENIED" in refused.err
    assert (await mesh.run("signals", "dead-letters", "--limit", "5")).code == 0


async def test_another_person_has_other_rights(mesh: Mesh) -> None:
    """`--as` chooses the certificate: an approver may not resolve, an unknown name is a usage error."""
    words = ("incidents", "resolve", str(uuid.UUID(int=1)), "--reason", "over")
    refused = await mesh.run(*words, "--as", "approver")
    assert refused.code == 1
    assert "PERMISSION_DENIED: human/approver may not call" in refused.err
    assert (await mesh.run(*words)).code == 0
    (request,) = mesh.ingest.resolved
    assert uuid.UUID(request.request_id).version == 4
    nobody = await mesh.run(*words, "--as", "nobody")
    assert nobody.code == 2
    assert "--as one of: approver, approver2, operator" in nobody.err


async def test_no_mesh_is_exit_code_3(mesh: Mesh, tmp_path: Path) -> None:
    """Without endpoints, and with nothing behind them, the next step is `opsmesh up`."""
    missing = await run("incidents", "list", "--state", str(tmp_path))
    assert missing.code == 3
    assert f"opsmesh up --state {tmp_path}" in missing.err
    endpoints = (mesh.state / "endpoints.json").read_text()
    port = endpoints.partition('"ingest": "')[2].partition('"')[0]
    (tmp_path / "endpoints.json").write_text(endpoints.replace(port, "127.0.0.1:1"))
    silent = await run("incidents", "list", "--state", str(tmp_path))
    assert silent.code == 3
    assert "opsmesh up" in silent.err


async def test_a_stranger_s_certificate_is_not_let_in(mesh: Mesh, tmp_path: Path) -> None:
    """A certificate of another CA gets no answer."""
    ensure(tmp_path)
    endpoints = (mesh.state / "endpoints.json").read_text().replace(f"{mesh.pki}/operator", f"{tmp_path}/pki/operator")
    (tmp_path / "endpoints.json").write_text(endpoints)
    assert (await run("incidents", "list", "--state", str(tmp_path))).code == 3


async def test_watch_with_json_is_one_answer_a_line(mesh: Mesh) -> None:
    """`incidents watch` asks again and again; scripts read one JSON document a line."""
    mesh.ingest.incidents.append(fakes.incident(1))
    done = await mesh.run("incidents", "watch", "--seconds", "3", "--json")
    assert done.code == 0
    answers = [json.loads(line)["incidents"] for line in done.out.splitlines()]
    assert len(answers) > 1
    assert {len(one) for one in answers} == {1}
    assert "is down" in (await mesh.run("incidents", "watch", "--seconds", "0.1")).out


async def test_wrong_words_are_exit_code_2() -> None:
    """An unknown command, option or word is a usage error with what there is."""
    unknown = await run("incident", "list")
    assert unknown.code == 2
    assert "Did you mean 'incidents'?" in unknown.err
    assert (await run("incidents", "list", "--colour")).code == 2
    state = await run("incidents", "list", "--incident-state", "SLEEPING")
    assert state.code == 2
    assert "AWAITING_MODEL" in state.err


async def test_a_tool_that_writes_is_locked_authorised_called_and_released(mesh: Mesh) -> None:
    """`tools call` takes the lock, gets a grant, sends exactly the judged bytes, and gives the lock back."""
    done = await mesh.run("tools", "call", "RestartWorkload", "target_id=svc:demo/checkout", "reason=a=b", "--json")
    assert done.code == 0
    assert done.answer["process_id"] == "42"
    assert mesh.steps == ["lock", "authorise", "restart", "release 4"]
    (request,) = mesh.gateway.requests
    assert (request.target_id, request.reason) == ("svc:demo/checkout", "a=b")
    assert uuid.UUID(request.request_id).version == 4


async def test_a_tool_call_without_a_grant_ends_and_releases(mesh: Mesh) -> None:
    """Observed, denied and waiting calls exit with 1, say why and what next, and leave no lock behind."""
    words = ("tools", "call", "RestartWorkload", "--json-request", '{"target_id": "svc:demo/checkout"}')
    expected = {
        guardrails.VERDICT_OBSERVE: "this would have happened",
        guardrails.VERDICT_DENY: "DENY: policy denies it",
        guardrails.VERDICT_REQUIRE_APPROVAL: "opsmesh approvals show approval-7",
    }
    for verdict, text in expected.items():
        mesh.steps.clear()
        mesh.guardrails.verdict = verdict
        done = await mesh.run(*words)
        assert done.code == 1
        assert text in done.err
        assert mesh.steps == ["lock", "authorise", "release 4"]
    assert 'THEN: once another person has approved it: opsmesh tools call RestartWorkload \'{"request_id": ' in done.err


async def test_the_request_may_be_json_in_place_of_pairs(mesh: Mesh) -> None:
    """A first argument that begins with a brace is the whole request; pairs after it win."""
    words = ("tools", "call", "RestartWorkload", '{"target_id": "svc:demo/checkout", "reason": "one"}', "reason=two")
    assert (await mesh.run(*words)).code == 0
    assert mesh.gateway.requests[0].reason == "two"


async def test_a_reading_tool_needs_no_lock(mesh: Mesh) -> None:
    """A READ is called at once."""
    done = await mesh.run("tools", "call", "GetWorkload", "target_id=svc:demo/checkout")
    assert done.code == 0
    assert "process_id: 42" in done.out
    assert mesh.steps == ["read"]


async def test_a_preview_changes_nothing(mesh: Mesh) -> None:
    """`tools call --preview` only asks what policy would say."""
    done = await mesh.run("tools", "call", "RestartWorkload", "target_id=svc:demo/checkout", "--preview", "--json")
    assert done.answer["judgement"]["verdict"] == "VERDICT_ALLOW"
    assert mesh.steps == ["preview"]


async def test_wrong_arguments_of_a_tool_are_usage_errors(mesh: Mesh) -> None:
    """A field that is none, JSON that is none and a wrong type are told before anything is asked for."""
    for words in (["host=web-1"], ["--json-request", "{"], ["--json-request", "[]"], ["target_id"]):
        done = await mesh.run("tools", "call", "RestartWorkload", *words)
        assert done.code == 2
    unknown = await mesh.run("tools", "call", "FormatDisk")
    assert (unknown.code, "opsmesh tools list" in unknown.err) == (1, True)
    assert mesh.steps == []


async def test_rule_examples_are_decided_by_the_mesh(mesh: Mesh, tmp_path: Path) -> None:
    """`rules test` says what matched, and for a failed example why its rule did not; then it exits with 1."""
    head = "rules: []\ntests:\n"
    good = "  - {name: known, incident: {labels.alertname: CheckoutDown, severity: critical}, rule_id: checkout-down}\n"
    bad = "  - {name: other, incident: {labels.alertname: Other, target: svc:demo/x}, rule_id: checkout-down}\n"
    (tmp_path / "rules.yaml").write_text(head + good)
    passed = await mesh.run("rules", "test", str(tmp_path / "rules.yaml"))
    assert passed.code == 0
    assert "because labels.alertname is CheckoutDown" in passed.out
    (tmp_path / "rules.yaml").write_text(head + good + bad)
    failed = await mesh.run("rules", "test", str(tmp_path))
    assert failed.code == 1
    assert "checkout-down did not match: labels.alertname is not CheckoutDown" in failed.out
    assert "1 of 2 examples passed" in failed.out
    told = await mesh.run("rules", "test", str(tmp_path), "--json")
    assert told.answer["failed_count"] == 1


async def test_version_needs_no_mesh() -> None:
    """`version` answers anywhere."""
    assert (await run("version", "--json")).answer == {"version": "0.1.0"}


async def test_certs_init_makes_what_is_missing(tmp_path: Path) -> None:
    """`certs init` makes the CA and every identity, and keeps what is valid."""
    assert (await run("certs", "init", "--state", str(tmp_path))).code == 0
    made = (tmp_path / "pki" / "operator.pem").read_bytes()
    assert (await run("certs", "init", "--state", str(tmp_path))).code == 0
    assert (tmp_path / "pki" / "operator.pem").read_bytes() == made


async def test_logs_show_the_last_lines(tmp_path: Path) -> None:
    """`logs` shows the end of a log, and names the logs there are."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "gateway.log").write_text("".join(f"line {number}\n" for number in range(100)))
    done = await run("logs", "gateway", "--lines", "2", "--state", str(tmp_path))
    assert done.out == "line 98\nline 99\n"
    other = await run("logs", "gatway", "--state", str(tmp_path))
    assert (other.code, "one of gateway" in other.err) == (1, True)


async def test_what_became_of_a_signal_is_shown(mesh: Mesh) -> None:
    """As a sheet without a stranger's control characters, as JSON with the body in base64, or as the bytes alone."""
    body = b'{"a": "\xc3\xa4\x1b[31m"}\n'
    mesh.ingest.signals.append(fakes.signal(7, body))
    signal_id = str(uuid.UUID(int=7))
    sheet = await mesh.run("signals", "show", signal_id)
    assert sheet.code == 0, sheet.err
    for words in (
        signal_id,
        "JOINED",
        "[red]disk[/red]",
        "BEARER",
        "application/json",
        f"{len(body)} bytes, see --raw",
    ):
        assert words in sheet.out
    assert "\x1b" not in sheet.out
    told = await mesh.run("signals", "show", signal_id, "--json")
    assert told.answer["record"]["disposition"] == "DISPOSITION_JOINED"
    assert told.answer["record"]["incident_id"] == str(uuid.UUID(int=1))
    assert base64.b64decode(told.answer["delivery"]["body"]) == body
    raw = await mesh.run("signals", "show", signal_id, "--raw")
    assert (raw.code, raw.out.encode(), raw.err) == (0, body, "")
    at_terminal = await mesh.run_at_terminal("", "signals", "show", signal_id, "--raw")
    assert '{"a": "ä\ufffd[31m"}' in at_terminal.out
    assert "\x1b[31m" not in at_terminal.out
    both = await mesh.run("signals", "show", signal_id, "--raw", "--json")
    assert (both.code, "NEXT: one of them" in both.err) == (2, True)


async def test_a_signal_that_is_not_there_or_has_no_body_says_what_next(mesh: Mesh) -> None:
    """Unknown, not recorded yet or too old is one refusal; gone bytes are another."""
    missing = await mesh.run("signals", "show", str(uuid.UUID(int=8)), "--json")
    assert (missing.code, missing.out) == (1, "")
    assert "SIGNAL_NOT_FOUND: there is no record of signal" in missing.err
    assert "NEXT: if it was accepted a moment ago" in missing.err
    old = fakes.signal(9, b"")
    old.ClearField("delivery")
    mesh.ingest.signals.append(old)
    assert "not kept any more" in (await mesh.run("signals", "show", str(uuid.UUID(int=9)))).out
    gone = await mesh.run("signals", "show", str(uuid.UUID(int=9)), "--raw")
    assert (gone.code, gone.out, "is not kept any more" in gone.err) == (1, "", True)


async def test_signals_are_listed_as_asked_for(mesh: Mesh) -> None:
    """Each filter reaches the service; a disposition is a word, and a wrong one is told with those there are."""
    mesh.ingest.signals.append(fakes.signal(7, b"{}"))
    incident = str(uuid.UUID(int=1))
    words = ("--source", "grafana", "--incident", incident, "--key", "k 1", "--disposition", "dead-letter")
    done = await mesh.run("signals", "list", *words, "--json")
    assert (done.code, set(done.answer)) == (0, {"signals", "next_page_token"})
    asked = mesh.ingest.asked[-1]
    assert (asked.source, asked.incident_id, asked.dedup_key) == ("grafana", incident, "k 1")
    assert asked.disposition == signal_pb2.SignalRecord.DISPOSITION_DEAD_LETTER
    table = await mesh.run("signals", "list")
    assert "[red]disk[/red]" in table.out
    assert "\x1b" not in table.out
    wrong = await mesh.run("signals", "list", "--disposition", "eaten")
    assert (wrong.code, "NEXT: one of opened, joined, duplicate" in wrong.err) == (2, True)


async def test_an_incident_is_shown_with_its_signals(mesh: Mesh) -> None:
    """In JSON they are a member of the resource, as in the list of signals; for people a table below the sheet."""
    mesh.ingest.incidents.append(fakes.incident(1))
    mesh.ingest.signals.append(fakes.signal(7, b"{}"))
    done = await mesh.run("incidents", "show", str(uuid.UUID(int=1)), "--json")
    assert (done.answer["incident_id"], done.answer["signal_count"]) == (str(uuid.UUID(int=1)), "3")
    (one,) = done.answer["signals"]
    assert (one["signal"]["signal_id"], one["disposition"]) == (str(uuid.UUID(int=7)), "DISPOSITION_JOINED")
    assert str(uuid.UUID(int=7)) in (await mesh.run("incidents", "show", str(uuid.UUID(int=1)))).out
