"""A model that costs nothing: what a role answers is read from a file, so that only the way there and back is left."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from services.agents import models as model_files
from services.agents.boundary import Boundary
from services.agents.domain import Models
from services.agents.main import read_recordings
from services.agents.providers.hosted import Hosted, warm
from services.agents.providers.recorded import Recorded
from services.agents.store import Ledger

Exchange = Mapping[str, Any]


def replayed(folder: Path, role: str, exchanges: Iterable[Exchange]) -> Models:
    """Write the exchanges and a models.yaml that replays them, with budgets that never end; return what it says."""
    (folder / "recordings").mkdir()
    known = {"exchanges": [{"role": role} | dict(one) for one in exchanges]}
    (folder / "recordings" / "all.yaml").write_text(yaml.safe_dump(known))
    path = folder / "models.yaml"
    wide = {name: {"tokens": 10**12, "cost_micros": 10**12} for name in ("incident", "day", "requester")}
    endpoint = {"model": "recorded", "recordings_folder": "recordings"}
    path.write_text(yaml.safe_dump({"roles": {role: endpoint}, "budgets": wide}))
    return model_files.load(path)


def boundary_of(models: Models, ledger: Ledger) -> Boundary:
    """Return the real boundary on a ledger; nobody is asked but the files."""
    return Boundary(models, ledger, Hosted(), Recorded(read_recordings(models)), warm)
