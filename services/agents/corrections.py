"""What a model is told about a reply of no use, so that its next one may be of some."""

from typing import Final

from services.agents.domain import Endpoint, Message, Question, Speaker
from services.agents.providers import ProviderError
from services.mesh.models.untrusted import sanitise

SAID_MAX: Final = 2000
WHY_MAX: Final = 500
NAMES_MAX: Final = 500


def correction(question: Question, endpoint: Endpoint, error: ProviderError) -> tuple[Message, Message]:
    """Return what the model said, made harmless and cut, and why it was not taken."""
    said = sanitise(error.said or "", SAID_MAX).text or "(nothing)"
    why = sanitise(error.detail, WHY_MAX).text
    return Message(Speaker.ASSISTANT, said), Message(Speaker.USER, f"Not taken: {why}. {_how(question, endpoint)}")


def _how(question: Question, endpoint: Endpoint) -> str:
    """Return what kind of a reply is wanted."""
    if question.response_schema:
        return "Answer with one JSON object as the schema says, and nothing else."
    if question.tools and not endpoint.native_tools:
        calls = " with at least one call" if question.must_call else ""
        return f"Answer with one JSON object as the instructions say{calls}, and nothing else."
    if question.must_call:
        names = ", ".join(tool.name for tool in question.tools)
        return f"Call one of the tools: {names if len(names) <= NAMES_MAX else 'those that are offered'}."
    return "Answer with text or with a call of a tool." if question.tools else "Answer with text."
