"""What a child process of the local mesh is, and how it is written down for the leash."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.local.files import write_private

LEASH = Path(__file__).with_name("leash.py")
HOUSE = Path(__file__).resolve().parents[2]
INHERITED = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ", "USER", "XDG_RUNTIME_DIR")
# What an operator may set for the whole mesh in the environment of `up`; nothing else of it reaches a service.
TUNABLE = (
    "OPSMESH_LOG_LEVEL",
    "OPSMESH_OTLP_ENDPOINT",
    "OPSMESH_RETENTION_DAYS",
    "OPSMESH_REQUEST_RETENTION_DAYS",
    "OPSMESH_EFFECT_RETENTION_DAYS",
    "OPSMESH_HISTORY_RETENTION_DAYS",
    "OPSMESH_CONVERSATION_RETENTION_DAYS",
    "OPSMESH_DEBOUNCE_SECONDS",
    "OPSMESH_DEDUPE_SECONDS",
    "OPSMESH_MODEL_STARTS_PER_HOUR",
    "OPSMESH_RESUME_PER_SECOND",
    "OPSMESH_RATE_LIMIT_PER_MINUTE",
    "OPSMESH_SERVICE_RATE_LIMIT_PER_MINUTE",
)


@dataclass(frozen=True, slots=True)
class Program:
    """One program to run: NAME is also its log's name; STOP ends it, also when its parent dies."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = HOUSE
    user: str | None = None
    stop: str = "TERM"
    stop_seconds: int = 10
    stop_group: bool = True


def base_environment() -> dict[str, str]:
    """Return the few outside variables a child may see: no OPSMESH_*, no proxy, no credential."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    kept.setdefault("PATH", os.defpath)
    return kept | {"PYTHONUNBUFFERED": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def tuned() -> dict[str, str]:
    """Return what the operator has set of TUNABLE."""
    return {name: os.environ[name] for name in TUNABLE if name in os.environ}


def write_spec(program: Program, folder: Path) -> list[str]:
    """Write PROGRAM's leash spec (mode 0600) into FOLDER and return the command that runs it in the foreground."""
    path = folder / f"{program.name}.json"
    spec = {
        "argv": list(program.argv),
        "env": base_environment() | dict(program.env),
        "cwd": str(program.cwd),
        "user": program.user,
        "death_signal": f"SIG{program.stop}",
    }
    write_private(path, json.dumps(spec, indent=1).encode())
    return leashed(folder, program.name)


def leashed(folder: Path, name: str) -> list[str]:
    """Return the command that runs the program NAME whose spec lies in FOLDER."""
    return [sys.executable, "-I", "-S", str(LEASH), str(folder / f"{name}.json")]
