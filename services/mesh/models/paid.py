"""What a refusal says of the tries that models were paid for before it."""

from typing import Final

from services.mesh.errors import Refusal

# Longer than any sum of tokens or money; what else stands there counts as nothing.
DIGITS_MAX: Final = 15


def paid(refusal: Refusal, name: str) -> int:
    """Return `input_tokens`, `output_tokens` or `cost_micros` (millionths) of a refusal's metadata; 0 when unsaid."""
    text = refusal.metadata.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX else 0
