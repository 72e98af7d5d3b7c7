"""The workflow is deterministic: what was recorded under earlier code replays under today's."""

import asyncio
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from services.automation.workflow import PlaybookWorkflow
from tests.automation.record import HISTORIES

RECORDED = sorted(HISTORIES.glob("*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_replay(path: Path) -> None:
    """A recorded history replays without another command than those it holds."""
    history = WorkflowHistory.from_json(path.stem, path.read_text())
    asyncio.run(Replayer(workflows=[PlaybookWorkflow]).replay_workflow(history))


def test_kinds() -> None:
    """Every kind of end is recorded."""
    kinds = {"repaired", "undone", "observed", "obstacles", "expired", "cancelled"}
    kinds |= {"approved", "rejected", "amended", "drifted", "killed"}
    assert kinds <= {path.stem for path in RECORDED}
