"""`opsmesh rules test`: the examples beside the rules, decided by the mesh, with why the other rules did not match."""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from opsmesh.config.v1 import rules_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import signal_pb2
from opsmesh.router.v1 import decision_service_pb2 as router
from opsmesh.router.v1 import decision_service_pb2_grpc as router_grpc
from services.cli.command import REFUSED, command
from services.cli.output import console
from services.cli.publishing import rules_app
from services.cli.session import Session, UsageError
from services.mesh.config import load_all, load_yaml

AT_ONCE: Final = 8
SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one example ended."""

    file: str
    name: str
    passed: bool
    expected: str
    actual: str
    matched: list[str]
    not_matched: dict[str, str]


@command(rules_app, "test")
async def run_tests(
    session: Session,
    path: Annotated[
        Path | None, typer.Argument(help="Rule file or folder; default: the rules the mesh runs with.")
    ] = None,
) -> None:
    """Run the examples of rule files against the active rule set; nothing happens."""
    chosen = path or session.config(None) / "rules"
    folder = chosen / "rules" if (chosen / "rules").is_dir() else chosen
    files = load_all(folder, rules_pb2.RuleFile) if folder.is_dir() else {folder: load_yaml(folder, rules_pb2.RuleFile)}
    examples = [(file, test) for file, content in files.items() for test in content.tests]
    if not examples:
        raise UsageError(
            f"{folder} has no tests\nNEXT: add `tests:` beside its `rules:`, as deploy/rules/checkout.yaml"
        )
    stub = router_grpc.DecisionServiceStub(session.channel("router"))
    few = asyncio.Semaphore(AT_ONCE)

    async def run(file: Path, test: rules_pb2.RuleTest) -> Outcome:
        async with few:
            answer = await stub.PreviewDecision(router.PreviewDecisionRequest(incident=incident_of(test)))
        return judge(file, test, answer)

    outcomes = await asyncio.gather(*(run(file, test) for file, test in examples))
    _show(session, outcomes)
    if not all(one.passed for one in outcomes):
        raise typer.Exit(REFUSED)


def incident_of(test: rules_pb2.RuleTest) -> ingest.Incident:
    """Return the incident that an example describes; a field that it does not name is empty."""
    values = test.incident
    incident = ingest.Incident(
        source=values.get("source", ""),
        title=values.get("title", ""),
        rule_name=values.get("rule", ""),
        severity=_severity(test.name, values.get("severity", "")),
        status=signal_pb2.Signal.STATUS_FIRING,
        firing=True,
    )
    if any(values.get(name) for name in ("target", "environment", "region")):
        incident.targets.add(
            target_id=values.get("target", ""),
            environment=values.get("environment", ""),
            region=values.get("region", ""),
            in_inventory=True,
            raw_key=values.get("target", ""),
        )
    for key, value in values.items():
        kind, dot, name = key.partition(".")
        if dot:
            (incident.labels if kind == "labels" else incident.resource)[name] = value
    incident.open_time.GetCurrentTime()
    return incident


def _severity(name: str, text: str) -> "signal_pb2.Signal.Severity.ValueType":
    """Return the severity by its word; "unknown", or none, is one that could not be read."""
    if text.lower() in ("", "unknown", "unspecified"):
        return signal_pb2.Signal.SEVERITY_UNSPECIFIED
    try:
        return signal_pb2.Signal.Severity.Value(f"SEVERITY_{text.upper()}")
    except ValueError:
        raise UsageError(f"test {name!r}: {text!r} is no severity\nNEXT: info, warning, error or critical") from None


def judge(file: Path, test: rules_pb2.RuleTest, answer: router.PreviewDecisionResponse) -> Outcome:
    """Compare the rule that decided with the one that should have."""
    return Outcome(
        file=file.name,
        name=test.name,
        passed=answer.decision.rule_id == test.rule_id,
        expected=test.rule_id,
        actual=answer.decision.rule_id,
        matched=list(answer.matched),
        not_matched={one.rule_id: one.reason for one in answer.not_matched},
    )


def _show(session: Session, outcomes: list[Outcome]) -> None:
    """Tell each example's end, and for a failed one why its rule did not match."""
    failed = [one for one in outcomes if not one.passed]
    if session.as_json:
        content = {"tests": [asdict(one) for one in outcomes], "failed_count": len(failed)}
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    out = console()
    for one in outcomes:
        mark = Text("passed ", style="green") if one.passed else Text("FAILED ", style="bold red")
        out.print(mark + Text(f"{one.file}: {one.name}: {one.actual or 'no rule'}"))
        if one.passed:
            for line in one.matched:
                out.print(Text(f"         because {line}", style="dim"))
            continue
        out.print(Text(f"         expected {one.expected or 'no rule'}"))
        why = one.not_matched.get(one.expected)
        reasons = {one.expected: why} if why else dict(list(one.not_matched.items())[:SHOWN])
        for rule, reason in reasons.items():
            out.print(Text(f"         {rule} did not match: {reason}"))
    out.print(f"{len(outcomes) - len(failed)} of {len(outcomes)} examples passed")
