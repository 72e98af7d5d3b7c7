"""Keywords: the few sentences that mean one thing without a model. Pure, strict, and never a guess.

A keyword is the whole message, on one line, word for word; a keyword within a sentence is none. `approve`, `reject`,
`answer` and `kill` are carried out by the person's own client with their own certificate: the router only says how.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from services.mesh.errors import Refusal
from services.mesh.tools import find_tool

APPROVALS: Final = "opsmesh.guardrails.v1.ApprovalService"
CONVERSATIONS: Final = "opsmesh.router.v1.ConversationService"
KILLS: Final = "opsmesh.guardrails.v1.KillSwitchService"
REASON: Final = "asked for in a chat"
REASON_MAX: Final = 512
ANSWER_MAX: Final = 2000
HELP: Final = """These words work without any model; each is a whole message of its own:
  status                          what is open, who is asked, what is stopped
  approve APPROVAL DIGEST         say yes to exactly those bytes (opsmesh approvals show)
  reject APPROVAL DIGEST REASON   say no
  answer QUESTION WORDS           answer what an incident's decision asks (opsmesh decisions list)
  kill all                        stop everything at once
  kill environment E | target T | tool M | playbook P | execution X | run R
                                  stop what is in that scope; --reason TEXT at the end says why
  yes, no                         answer the question that is open
  help                            this
Anything else is read by a model as a question or a wish. What could change something is asked back first, becomes an
incident only after a yes, and is then authorised like everything else."""
USAGE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "approve": "approve APPROVAL DIGEST: the id and at least 12 digits of the digest you have seen",
        "reject": "reject APPROVAL DIGEST REASON: the id, at least 12 digits of the digest, and why",
        "answer": "answer QUESTION WORDS: the decision that asks, and the answer in the type it asks for",
    }
)
_ID: Final = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_NAME: Final = r"[a-z0-9][a-z0-9_.-]{0,62}"
# As in the IDL's KillScope; a tool may be named by its bare RPC, as in the command.
_SCOPES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "environment": ("environment", _NAME),
        "target": ("target_id", r"[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,199}"),
        "tool": ("tool", r"(?:[a-z][A-Za-z0-9_.]*/)?[A-Z][A-Za-z0-9]{0,99}"),
        "playbook": ("playbook_id", _NAME),
        "execution": ("execution_id", _ID),
        "run": ("run_id", _ID),
    }
)
_FLAGS: Final = re.ASCII | re.IGNORECASE
_APPROVE: Final = re.compile(rf"approve +({_ID}) +([0-9a-f]{{12,64}})", _FLAGS)
_REJECT: Final = re.compile(rf"reject +({_ID}) +([0-9a-f]{{12,64}}) +([^ \n].*)", _FLAGS)
_REPLY: Final = re.compile(rf"answer +({_ID}) +([^ \n].*)", _FLAGS)
_ANSWER: Final = re.compile(rf"(approve|reject|answer) +{_ID}\b.*", _FLAGS)
_KILL: Final = re.compile(r"kill +(?:--)?([a-z]+)(?: +([^ \n]+))??(?: +--reason +([^ \n].*))?", _FLAGS)


@dataclass(frozen=True, slots=True)
class Status:
    """Say what is going on."""


@dataclass(frozen=True, slots=True)
class Help:
    """Say which keywords there are."""


@dataclass(frozen=True, slots=True)
class Usage:
    """A keyword that lacks something: `text` says how it is written. Nothing is done."""

    text: str


@dataclass(frozen=True, slots=True)
class Order:
    """A call for the person's own client: `request` is proto3 JSON without request_id, `command` does the same."""

    method: str
    request: Mapping[str, Any]
    command: str
    words: str

    @property
    def request_json(self) -> str:
        """Return the request as text."""
        return json.dumps(dict(self.request), ensure_ascii=False)


Keyword = Status | Help | Usage | Order


def read(text: str) -> Keyword | None:
    """Return what a message means as a keyword; None for everything else, which is a wish."""
    # Only blanks: who pastes lines pastes text, not an order.
    said = text.strip(" \t\r\n")
    if "\n" in said or "\r" in said or "\0" in said:
        return None
    word = said.lower() if said.isascii() else ""
    if word == "status":
        return Status()
    if word == "help":
        return Help()
    return _reply(said) or _answer(said) or _kill(said)


def _reply(said: str) -> Order | Usage | None:
    """Return the answer to the question of a decision."""
    found = _REPLY.fullmatch(said)
    if found is None:
        return None
    question, words = found[1].lower(), found[2].strip()
    if len(words) > ANSWER_MAX:
        return Usage(f"the answer has {len(words)} characters; at most {ANSWER_MAX}")
    return Order(
        f"{CONVERSATIONS}/AnswerQuestion",
        {"question_id": question, "text": words},
        shlex.join(["opsmesh", "decisions", "answer", question, words]),
        f"answer question {question}: {words}",
    )


def _answer(said: str) -> Order | Usage | None:
    """Return the answer to an approval."""
    if found := _APPROVE.fullmatch(said):
        approval, digest = found[1].lower(), found[2].lower()
        return Order(
            f"{APPROVALS}/Approve",
            {"approval_id": approval, "request_digest": digest},
            shlex.join(["opsmesh", "approvals", "approve", approval, "--digest", digest]),
            f"say yes to approval {approval}, exactly the bytes of digest {digest}",
        )
    if found := _REJECT.fullmatch(said):
        approval, digest, why = found[1].lower(), found[2].lower(), found[3].strip()
        if len(why) > REASON_MAX:
            return Usage(f"the reason has {len(why)} characters; at most {REASON_MAX}")
        return Order(
            f"{APPROVALS}/Reject",
            {"approval_id": approval, "request_digest": digest, "comment": why},
            shlex.join(["opsmesh", "approvals", "reject", approval, "--digest", digest, "--comment", why]),
            f"say no to approval {approval}: {why}",
        )
    if found := _ANSWER.fullmatch(said):
        return Usage(USAGE[found[1].lower()])
    return None


def _kill(said: str) -> Order | Usage | None:
    """Return a stop: of one scope, with nothing around it but a reason that is called one."""
    found = _KILL.fullmatch(said)
    if found is None:
        return None
    scope, value, reason = found[1].lower(), found[2] or "", (found[3] or REASON).strip()
    if len(reason) > REASON_MAX:
        return Usage(f"the reason has {len(reason)} characters; at most {REASON_MAX}")
    if scope == "all":
        return None if value else _engage({"everything": True}, ["--all"], reason, "everything")
    return _scoped(scope, value, reason) if scope in _SCOPES else None


def _scoped(scope: str, value: str, reason: str) -> Order | Usage:
    """Return a stop of one environment, target, tool, playbook, execution or run."""
    field, pattern = _SCOPES[scope]
    if not value:
        return Usage(f"kill {scope} WHICH: say which {scope}")
    if not re.fullmatch(pattern, value, re.ASCII):
        return Usage(f"kill {scope} WHICH: {scope} is not written like that; see: opsmesh kill engage --help")
    if scope == "tool":
        try:
            value = find_tool(value).name
        except Refusal:
            return Usage("kill tool WHICH: there is no such tool; see: opsmesh tools list")
    return _engage({field: value}, [f"--{scope}", value], reason, f"{scope} {value}")


def _engage(scope: Mapping[str, Any], options: list[str], reason: str, what: str) -> Order:
    """Return the order to stop a scope."""
    return Order(
        f"{KILLS}/Engage",
        {"scope": dict(scope), "reason": reason},
        shlex.join(["opsmesh", "kill", "engage", *options, "--reason", reason]),
        f"stop {what} at once, until it is released: {reason}",
    )
