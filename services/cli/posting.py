"""Posting to the bridge as a sender would, with its proof; and what an answer other than 202 means for who sent it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import httpx

from services.cli.session import UsageError
from services.local.endpoints import webhook_headers
from services.local.signing import tls_of

SECONDS: Final = 10.0
# Said anew by whoever posts: a recorded value would be wrong.
NOT_REPLAYED: Final = frozenset(
    {"host", "connection", "content-length", "content-encoding", "transfer-encoding", "accept-encoding", "expect"}
)
NO_PROOF: Final = frozenset({"none", "mtls"})


@dataclass(frozen=True, slots=True)
class Posting:
    """What a sender posts: its source, its exact body, and headers that say what the body is."""

    source: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Postman:
    """Posts for any source that the mesh's endpoints.json names; one pool of connections for each certificate."""

    def __init__(self, endpoints: Mapping[str, Any], connections: int = 4) -> None:
        self._hooks: Mapping[str, dict[str, str]] = endpoints["webhooks"]
        self._authority: str = endpoints["tls"]["ca"]
        self._connections = connections
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def __aenter__(self) -> Self:
        """Open nothing: that is left to the first post."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    def hook(self, source: str) -> dict[str, str]:
        """Return how to post as SOURCE. Raises UsageError when nothing is configured by this name."""
        if source not in self._hooks:
            known = ", ".join(sorted(self._hooks))
            raise UsageError(f"there is no source {source or '(none named)'}\nNEXT: --source, one of: {known}")
        return self._hooks[source]

    def headers(self, posting: Posting) -> httpx.Headers:
        """Return all headers of a posting, signed now; what is signed wins over what was recorded."""
        hook = self.hook(posting.source)
        made = httpx.Headers({"Content-Type": "application/json"})
        made.update({name: text for name, text in posting.headers.items() if name.lower() not in NOT_REPLAYED})
        try:
            made.update(webhook_headers(hook, posting.body))
        except IndexError:
            raise UsageError(
                f"the secret of source {posting.source} is empty: {hook['secret_file']}\nNEXT: write one into it"
            ) from None
        except UnicodeDecodeError:
            raise UsageError(
                f"{hook['auth']} signs text, and the body is not UTF-8\nNEXT: send it as a source with another `auth`"
            ) from None
        return made

    async def post(self, posting: Posting, headers: httpx.Headers) -> httpx.Response:
        """Post it once. Raises httpx.TransportError when there is no answer within 10 s."""
        hook = self.hook(posting.source)
        return await self._client(hook).post(hook["url"], content=posting.body, headers=headers)

    def _client(self, hook: Mapping[str, str]) -> httpx.AsyncClient:
        key = hook["secret_file"] if hook["auth"] == "mtls" else ""
        if key not in self._clients:
            self._clients[key] = httpx.AsyncClient(
                timeout=httpx.Timeout(SECONDS, pool=None),
                trust_env=False,
                verify=tls_of(hook, self._authority),
                limits=httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections),
            )
        return self._clients[key]


def signals_of(answer: httpx.Response) -> list[str]:
    """Return the ids of the signals that a 202 names; none where a source answers as its sender wants it."""
    try:
        return [str(one["signal_id"]) for one in answer.json()["results"]]
    except (ValueError, TypeError, KeyError):
        return []


def reason(answer: httpx.Response) -> str:
    """Return why a delivery was not accepted, in one line: the status and the bridge's own words."""
    try:
        said = answer.json()
    except ValueError:
        said = {}
    said = said if isinstance(said, dict) else {}
    words = [f"{one.get('field') or 'body'} {one.get('description')}" for one in said.get("errors", ())]
    return f"{answer.status_code}: {'; '.join(words) or said.get('error') or answer.text[:200] or answer.reason_phrase}"


def next_step(answer: httpx.Response, source: str, hook: Mapping[str, str]) -> str:
    """Return what to do about an answer other than 202."""
    seconds = answer.headers.get("Retry-After", "")
    again = f"come again{f' after {seconds} s' if seconds else ''}, or see what is wrong: opsmesh status"
    if answer.status_code == httpx.codes.UNAUTHORIZED and hook["auth"] == "sns":
        return (
            "only Amazon can sign for SNS, and only topics that sources.yaml names may send; to try its parser, "
            "add a source with `parser: sns` and a scheme of yours"
        )
    steps: dict[int, str] = {
        401: f"{hook['secret_file'] or 'the source'} is not what the bridge knows: opsmesh logs bridge",
        404: "opsmesh check, then start `opsmesh up` again: sources are read when it starts",
        413: "send fewer alerts in one body",
        422: f"it is kept: opsmesh signals dead-letters --source {source}; docs/senders.md says what it should be",
        429: again,
        503: again,
    }
    return steps.get(answer.status_code, "opsmesh logs bridge")
