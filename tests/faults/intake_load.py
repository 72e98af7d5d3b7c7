"""What senders send to the intake that is killed, and how: as real ones, again and again until there is a 202."""

import asyncio
import json
import random
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_delay, wait_random_exponential

from services.local.signing import proof_of
from tests.bridge.house import BASIC, BEARER
from tests.ingest.house import START, alert, notification

CAUSES = 15
SENDERS = 48
# Longer than any outage: what is not taken by then was refused for good.
SENDER_SECONDS = 240
ANSWER_SECONDS = 10
SIGNED = "signed"
HOOK = {"auth": "hmac-github", "header": "X-Hub-Signature-256"}
# Most alerts of a notification, and how many of a hundred alerts come by it.
SOURCES = {"alertmanager": (20, 50), "grafana": (8, 20), SIGNED: (5, 20), "generic": (1, 10)}


@dataclass(frozen=True, slots=True)
class Post:
    """One notification: the alerts it tells of, by number, in the order of its answer."""

    source: str
    body: bytes
    numbers: Sequence[int]


def posts(alerts: int, chance: random.Random) -> list[Post]:
    """Return the notifications of so many different alerts, and the copies that the second of a pair sends."""
    made: list[Post] = []
    # Weighed by alerts, not by notifications.
    weights = [share / (1 + most) for most, share in SOURCES.values()]
    begin = 0
    while begin < alerts:
        (source,) = chance.choices(list(SOURCES), weights)
        taken = range(begin, min(alerts, begin + chance.randint(1, SOURCES[source][0])))
        begin = taken.stop
        made.append(_post(source, taken))
        if source == "alertmanager":
            made.append(_post(source, chance.sample(taken, len(taken))))
    # A peer's copy comes some time before or after the other's, not minutes.
    order = sorted(range(len(made)), key=lambda at: at + chance.uniform(0, 60))
    return [made[at] for at in order]


def cause_of(source: str, number: int) -> str:
    """Return the rule that an alert is of; one incident each."""
    return f"{source}-{number % CAUSES}"


def _post(source: str, numbers: Sequence[int]) -> Post:
    if source == "generic":
        (number,) = numbers
        body = {"id": f"db-{number}", "status": "firing", "title": "it is full", "service": "checkout"}
        body |= {"rule": cause_of(source, number), "start_time": START, "severity": "critical"}
        return Post(source, json.dumps(body).encode(), numbers)
    return Post(source, notification(*(alert(cause_of(source, one), pod=f"web-{one}") for one in numbers)), numbers)


class RefusedError(Exception):
    """The sender is told to come again, or got no answer."""


@dataclass(slots=True)
class Senders:
    """Post everything, many at once; keep what was answered."""

    url: str
    # signal_id -> (source, number): what a 202 has promised.
    promised: dict[str, tuple[str, int]] = field(default_factory=dict)
    # (source, number) -> tries without an answer, which may have been stored all the same
    silent: Counter[tuple[str, int]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    given_up: list[Post] = field(default_factory=list)
    accepted: int = 0
    retried: int = 0
    # Set at each 202.
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, todo: Sequence[Post]) -> None:
        """Send all of it."""
        following = iter(todo)
        limits = httpx.Limits(max_connections=SENDERS)
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=ANSWER_SECONDS, limits=limits, trust_env=False) as http,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(SENDERS):
                group.create_task(self._sender(http, following))

    async def _sender(self, http: httpx.AsyncClient, following: Iterator[Post]) -> None:
        for post in following:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(RefusedError),
                stop=stop_after_delay(SENDER_SECONDS),
                wait=wait_random_exponential(multiplier=0.1, max=1),
            )
            try:
                await retrying(self._once, http, post)
            except RetryError:
                self.given_up.append(post)

    async def _once(self, http: httpx.AsyncClient, post: Post) -> None:
        """Post once."""
        headers = proof_of(HOOK, "new-secret", post.body) if post.source == SIGNED else BEARER
        headers = dict(BASIC if post.source == "grafana" else headers)
        if post.source == SIGNED:
            headers["X-GitHub-Delivery"] = str(uuid.uuid4())
        try:
            answer = await http.post(f"/v1/webhooks/{post.source}", content=post.body, headers=headers)
        except httpx.HTTPError as error:
            self._again(post, type(error).__name__)
            raise RefusedError from error
        if answer.status_code != httpx.codes.ACCEPTED:
            self._again(post, str(answer.status_code))
            raise RefusedError(answer.text)
        results = answer.json()["results"]
        assert len(results) == len(post.numbers), answer.text
        for result, number in zip(results, post.numbers, strict=True):
            self.promised[result["signal_id"]] = (post.source, number)
        self.accepted += len(post.numbers)
        self.progress.set()

    def _again(self, post: Post, why: str) -> None:
        self.refused[why] += 1
        self.retried += len(post.numbers)
        self.silent.update((post.source, number) for number in post.numbers)
