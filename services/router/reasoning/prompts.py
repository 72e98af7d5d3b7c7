"""Prompts are versioned files: a decision names its file and the hash of what was in it."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent.parent / "prompts"
INCIDENT: Final = "route-incident.v1"
CONVERSATION: Final = "route-conversation.v1"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt file; `digest` is the SHA-256, hex, of its bytes."""

    prompt_id: str
    text: str
    digest: str


@cache
def load(prompt_id: str) -> Prompt:
    """Return a prompt; it is read once. Raises OSError when there is none of that name: a mistake of ours."""
    content = (FOLDER / f"{prompt_id}.md").read_bytes()
    return Prompt(prompt_id, content.decode(), hashlib.sha256(content).hexdigest())
