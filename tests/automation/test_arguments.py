"""How requests are made from what is known when a step runs."""

import pytest

from opsmesh.config.v1 import playbooks_pb2
from opsmesh.tools.notify.v1 import notify_tool_service_pb2
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2
from opsmesh.tools.workload.v1 import workload_tool_service_pb2
from services.automation.arguments import ArgumentError, NotYetKnownError, Sources, build, holds, unmet
from services.mesh.masking import masked_json
from services.mesh.tools import find_tool
from tests.automation.fakes import TARGET, incident
from tests.automation.playbooks import playbook

REQUEST_ID = "7f3f1a52-59a3-4e0b-8b9c-2f8f6a9c1d11"
RUNNING = workload_tool_service_pb2.Workload.STATE_RUNNING
INCIDENT = incident(REQUEST_ID)


def step(arguments: str, tool: str = "SendNotice", extra: str = "") -> playbooks_pb2.Step:
    """Return one step."""
    return playbook(
        f"{{playbook_id: p, title: t, steps: [{{step_id: a, tool: {tool}, arguments: {arguments}{extra}}}]}}"
    ).steps[0]


def notice(arguments: str, note: str = "", **answers: object) -> notify_tool_service_pb2.SendNoticeRequest:
    """Return the request of a SendNotice step."""
    fixed = f"{{channel: {{literal: ops}}, kind: {{literal: KIND_FAILED}}, {arguments}}}"
    sources = Sources(INCIDENT, answers, note)  # type: ignore[arg-type]  # messages by step id
    built = build(find_tool("SendNotice"), step(fixed).arguments, sources, REQUEST_ID)
    assert isinstance(built, notify_tool_service_pb2.SendNoticeRequest)
    return built


def test_words() -> None:
    """Literals, fields, enum words, labels and the request_id arrive; long text is cut, not refused."""
    made = notice(
        'title: {from: incident.title}, detail: {from: incident.severity}, target_id: {from: "incident.targets[0]"}'
    )
    assert (made.request_id, made.target_id, made.detail, len(made.title)) == (REQUEST_ID, TARGET, "CRITICAL", 200)
    assert notice("title: {from: 'incident.labels[\"team\"]'}").title == "shop"
    assert notice("title: {from: 'incident.labels[\"no\"]', default: nobody}").title == "nobody"
    assert notice("title: {from: incident.environment}").title == "demo"


def test_answers() -> None:
    """Values of earlier answers arrive, also out of lists; what is missing gets the default."""
    found = runbook_tool_service_pb2.SearchRunbooksResponse()
    found.hits.add(line=7).runbook.title = "Checkout"
    assert notice('title: {from: "steps.find.hits[0].runbook.title"}', find=found).title == "Checkout"
    assert notice('title: {from: "steps.find.hits[0].line"}', find=found).title == "7"
    assert notice('title: {from: "steps.find.hits[3].line", default: none}', find=found).title == "none"
    health = workload_tool_service_pb2.CheckHealthResponse(healthy=False)
    assert notice("title: {from: steps.look.healthy}", look=health).title == "false"


def test_note() -> None:
    """What the starter has to say comes first; what follows it is cut to the bound, and either may be missing."""
    said = "title: {literal: t}, detail: {from: execution.note, also: incident.title}"
    assert notice(said, "Is it planned?").detail == f"Is it planned? | {INCIDENT.title}"
    assert notice(said).detail == INCIDENT.title
    long = notice(said, "q" * 900).detail
    assert (len(long), long[:900], long[-1]) == (1000, "q" * 900, "…")
    nothing = "title: {literal: t}, detail: {from: execution.note, also: incident.description}"
    assert (notice(nothing, "Why").detail, notice(nothing).detail) == ("Why", "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('{target_id: {from: "incident.targets[1]"}}', "TARGET_UNKNOWN"),
        ('{target_id: {from: "incident.targets[9]"}}', "TARGET_UNKNOWN"),
        ('{target_id: {from: "incident.targets[9]", default: "svc:demo/other"}}', "TARGET_UNKNOWN"),
    ],
)
def test_targets(arguments: str, reason: str) -> None:
    """Only a target of the inventory is an argument, and no default replaces it."""
    with pytest.raises(ArgumentError) as refused:
        build(find_tool("CheckHealth"), step(arguments, "CheckHealth").arguments, Sources(INCIDENT, {}), REQUEST_ID)
    assert refused.value.reason == reason


def test_bounds() -> None:
    """A request that breaks its bounds is not made."""
    with pytest.raises(ArgumentError, match="title"):
        notice("title: {from: incident.description}")


def test_unknown_answer() -> None:
    """A value of a step without an answer is not yet known."""
    with pytest.raises(NotYetKnownError):
        notice("title: {from: steps.look.detail}")


def test_conditions() -> None:
    """Conditions and expectations compare typed values, enums by name."""
    sources = Sources(INCIDENT, {"w": workload_tool_service_pb2.GetWorkloadResponse(state=RUNNING, process_id=5)})
    wanted = step("{}", extra=", when: [{path: steps.w.state, equals: STATE_RUNNING}]").when
    assert holds(wanted, sources) == ""
    wanted = step("{}", extra=", when: [{path: steps.w.process_id, equals: 6}]").when
    assert holds(wanted, sources) == "steps.w.process_id is 5, not 6"
    expected = step("{}", extra=", expect: [{path: healthy, equals: true}]").expect
    assert unmet(expected, workload_tool_service_pb2.CheckHealthResponse(healthy=True)) == ""
    assert "expected True" in unmet(expected, workload_tool_service_pb2.CheckHealthResponse())


def test_shown_json_is_bounded() -> None:
    """What is shown of an answer is bounded, whatever the answer."""
    answer = runbook_tool_service_pb2.ReadRunbookResponse(markdown="x" * 100_000)
    assert len(masked_json(answer)) == 4096
