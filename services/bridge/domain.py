"""How much of a request is read, and what a secret file holds. No framework, no input or output."""

BODY_MAX = 1 << 20
DISCARD_MAX = 16 << 20


def read_secrets(text: str) -> tuple[bytes, ...]:
    """Return the secrets of a file: one a line, so that an old and a new one are both accepted while they rotate."""
    return tuple(line.strip().encode() for line in text.splitlines() if line.strip())
