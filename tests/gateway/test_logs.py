"""Logs: the same facts on JSON-lines files and on an index searched as Kibana does."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from opsmesh.tools.logs.v1 import logs_tool_service_pb2 as pb
from services.gateway import backends
from services.gateway.tools import json_lines
from services.gateway.tools.logs import LogsTools
from services.gateway.tools.searching import Words, time_of
from services.mesh import paging
from services.mesh.call import working
from services.mesh.errors import Refusal
from tests.gateway.elasticsearch import Elasticsearch
from tests.gateway.web import Responder, Web, web

TARGET = "svc:demo/checkout"
SEARCH = "opsmesh.tools.logs.v1.LogsToolService/SearchLogs"
NOON = datetime(2027, 1, 15, 12, tzinfo=UTC)
Request = pb.SearchLogsRequest


def line(seconds: float, message: str, service: str = "checkout", **more: Any) -> dict[str, Any]:
    """Return a document of so many seconds after noon."""
    moment = (NOON + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"@timestamp": moment, "message": message, "service": {"name": service}} | more


DOCUMENTS = [
    line(0, "started", log={"level": "INFO"}),
    line(1, "Payment REFUSED by bank", log={"level": "ERROR"}, trace={"id": "t1"}),
    line(2, "payment refused: timeout\n  at pay()\n  at main()", log={"level": "ERROR"}),
    line(2, "payment accepted"),
    line(3, "payment refused", service="billing"),
    line(60, "stopped"),
]


@pytest.fixture(autouse=True)
def call() -> Iterator[None]:
    """Put every test into a call with thirty seconds."""
    with working("service/automation", SEARCH, 30):
        yield


def tools(folder: Path, store: dict[str, Any], **more: Any) -> LogsTools:
    """Return the family on one store."""
    targets = [{"target_id": TARGET, "terms": {"service.name": "checkout"}}]
    path = folder / "backends.yaml"
    path.write_text(yaml.safe_dump({"logs": [{"targets": targets, "fields": ["log.level"]} | store | more]}))
    return LogsTools(backends.load(path, folder).logs)


def files(folder: Path, *contents: str) -> dict[str, Any]:
    """Write files and return the store that they are."""
    for number, content in enumerate(contents):
        (folder / f"{number}.jsonl").write_text(content)
    return {"json_lines": {"paths": [f"{number}.jsonl" for number in range(len(contents))]}}


def as_lines(*documents: dict[str, Any]) -> str:
    """Return documents as a file has them."""
    return "".join(json.dumps(one) + "\n" for one in documents)


@asynccontextmanager
async def index(folder: Path, respond: Responder, **more: Any) -> AsyncIterator[tuple[LogsTools, Web]]:
    """Give the family on an index."""
    async with web(respond) as server:
        family = tools(folder, {"elasticsearch": {"url": server.url, "index": "logs-*"} | more})
        yield family, server
        await family.close()


@pytest.fixture(params=["files", "index"])
async def family(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogsTools]:
    """Give the family on the documents above, in either store."""
    if request.param == "files":
        yield tools(tmp_path, files(tmp_path, as_lines(*DOCUMENTS[:3]), as_lines(*DOCUMENTS[3:])))
    else:
        async with index(tmp_path, Elasticsearch("logs-*", DOCUMENTS)) as (found, _):
            yield found


def search(start: float = 0, end: float = 30, **more: Any) -> Request:
    """Return a request for some seconds around noon."""
    request = Request(target_id=TARGET, **more)
    request.start_time.FromDatetime(NOON + timedelta(seconds=start))
    request.end_time.FromDatetime(NOON + timedelta(seconds=end))
    return request


def said(found: pb.SearchLogsResponse) -> list[str]:
    """Return the first line of each message."""
    return [one.message.partition("\n")[0] for one in found.entries]


async def test_the_lines_of_a_range_come_newest_first(family: LogsTools) -> None:
    """The start is part of the range, the end is not; another service's lines are never among them."""
    found = await family.search_logs(search(), {})
    assert said(found) == [
        "payment accepted",
        "payment refused: timeout",
        "Payment REFUSED by bank",
        "started",
    ]
    assert (found.total, found.total_is_lower_bound, found.partial, found.next_page_token) == (4, False, False, "")
    assert found.entries[-1].event_time.ToDatetime(UTC) == NOON
    assert said(await family.search_logs(search(0, 2, order=Request.ORDER_OLDEST_FIRST), {})) == [
        "started",
        "Payment REFUSED by bank",
    ]


@pytest.mark.parametrize(
    ("query", "hits"),
    [
        ("refused", 2),
        ("REFUSED payment", 2),
        ('"refused by"', 1),
        ("payment -refused", 1),
        ('payment -"by bank" -accepted', 1),
        ("submarine", 0),
        ("  ", 4),
    ],
)
async def test_all_words_must_occur_and_none_of_the_others(family: LogsTools, query: str, hits: int) -> None:
    """Words, phrases, and both with a minus; case does not matter."""
    assert (await family.search_logs(search(query=query), {})).total == hits


async def test_the_query_cannot_lead_to_another_targets_lines(family: LogsTools) -> None:
    """What filters by target is no part of the query."""
    for query in ("refused OR service.name:billing", "*:*", '"} , {"', "billing", "service.name:billing"):
        found = await family.search_logs(search(query=query), {})
        assert all(
            "checkout" not in one.message and one.event_time.ToDatetime(UTC) < NOON + timedelta(seconds=3)
            for one in found.entries
        )


async def test_only_the_fields_asked_for_come_along(family: LogsTools) -> None:
    """The usual ones when none are named; the message keeps its line breaks."""
    usual = (await family.search_logs(search(query="timeout"), {})).entries[0]
    assert dict(usual.fields) == {"log.level": "ERROR"}
    assert usual.message == "payment refused: timeout\nat pay()\nat main()"
    named = (await family.search_logs(search(query="bank", fields=["trace.id", "service", "none"]), {})).entries[0]
    assert dict(named.fields) == {"trace.id": "t1", "service": '{"name": "checkout"}'}


@pytest.mark.parametrize("order", [Request.ORDER_NEWEST_FIRST, Request.ORDER_OLDEST_FIRST])
async def test_pages_hold_every_line_once(family: LogsTools, order: "Request.Order.ValueType") -> None:
    """Two lines of one moment, too; a token fits only the same search."""
    whole = said(await family.search_logs(search(order=order), {}))
    paged, token = list[str](), ""
    while True:
        found = await family.search_logs(search(order=order, page_size=1, page_token=token), {})
        paged += said(found)
        token = found.next_page_token
        if not token:
            break
        with pytest.raises(Refusal, match="INVALID_PAGE_TOKEN"):
            await family.search_logs(search(order=order, query="other", page_token=token), {})
    assert paged == whole


@pytest.mark.parametrize(("start", "end", "words"), [(5, 5, "after start_time"), (0, 7 * 86400 + 1, "at most 7 days")])
async def test_a_range_is_bounded(family: LogsTools, start: float, end: float, words: str) -> None:
    """The refusal names the field."""
    with pytest.raises(Refusal, match="INVALID_ARGUMENT") as caught:
        await family.search_logs(search(start, end), {})
    assert words in caught.value.violations[0].description


async def test_a_target_without_logs_is_told_the_lines_to_add(family: LogsTools, tmp_path: Path) -> None:
    """They are lines that load."""
    request = search()
    request.target_id = "svc:demo/other"
    with pytest.raises(Refusal, match=r"BACKEND_MISSING.*logs: ") as caught:
        await family.search_logs(request, {})
    (tmp_path / "added.yaml").write_text(caught.value.metadata["lines"])
    assert "svc:demo/other" in backends.load(tmp_path / "added.yaml", tmp_path).logs


async def test_what_is_long_or_hidden_is_cut(tmp_path: Path) -> None:
    """4,096 characters of a message, 512 of a field; no control or zero-width characters."""
    documents = [line(1, "x" * 5000, log={"level": "y" * 600}), line(2, "a\x1b[31m\u202eb\tc")]
    found = await tools(tmp_path, files(tmp_path, as_lines(*documents))).search_logs(search(), {})
    assert [(len(one.message), one.truncated) for one in found.entries] == [(9, False), (4096, True)]
    assert found.entries[0].message == "a [31mb c"
    assert len(found.entries[1].fields["log.level"]) == 512


async def test_broken_lines_are_passed_over(tmp_path: Path) -> None:
    """Half a line, no object, no time, a time that is none; epoch seconds and milliseconds are times."""
    good = NOON.timestamp()
    broken = '{"mess\n[1]\n7\n{"message": "no time"}\n{"@timestamp": "x", "message": "y"}\n\n'
    times = [good, good * 1000, str(NOON), "2027-01-15T12:00:00"]
    lines = as_lines(*({"@timestamp": one, "message": "m", "service.name": "checkout"} for one in times))
    found = await tools(tmp_path, files(tmp_path, broken + lines)).search_logs(search(), {})
    assert [one.event_time.ToDatetime(UTC) for one in found.entries] == [NOON] * 4


async def test_of_a_large_file_the_end_is_searched_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only when the range begins before what was looked at."""
    monkeypatch.setattr(json_lines, "TAIL_BYTES", 400)
    family = tools(tmp_path, files(tmp_path, as_lines(*(line(n, f"line {n}") for n in range(20)))))
    found = await family.search_logs(search(), {})
    assert found.partial
    assert found.total_is_lower_bound
    assert "only the last" in found.partial_reason
    assert said(found)[0] == "line 19"
    assert not (await family.search_logs(search(18), {})).partial


async def test_a_missing_file_is_said_and_no_file_at_all_is_refused(tmp_path: Path) -> None:
    """With the file's name, not its folder."""
    store = files(tmp_path, as_lines(*DOCUMENTS), "")
    (tmp_path / "1.jsonl").unlink()
    found = await tools(tmp_path, store).search_logs(search(), {})
    assert (found.total, found.partial) == (4, True)
    assert found.partial_reason == "1.jsonl cannot be read (FileNotFoundError)"
    (tmp_path / "0.jsonl").unlink()
    with pytest.raises(Refusal, match=r"BACKEND_UNAVAILABLE.*0\.jsonl cannot be read"):
        await tools(tmp_path, store).search_logs(search(), {})


async def test_a_scan_ends_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not read is said."""
    monkeypatch.setattr(json_lines, "LOOK", 1)
    with working("service/automation", SEARCH, 0.2):
        found = await tools(tmp_path, files(tmp_path, as_lines(*DOCUMENTS))).search_logs(search(), {})
    assert (found.total, found.partial_reason) == (0, "0.jsonl was not read to its end in time")


@pytest.mark.parametrize("position", ["[1]", '["a", 1, 2]', "7", "{", "[1, 2, [3]]"])
async def test_a_forged_token_is_refused(tmp_path: Path, position: str) -> None:
    """Whatever is in it."""
    request = search()
    request.page_token = paging.write_token(request, position)
    with pytest.raises(Refusal, match="INVALID_PAGE_TOKEN"):
        await tools(tmp_path, files(tmp_path, as_lines(*DOCUMENTS))).search_logs(request, {})


async def test_shards_that_failed_make_an_answer_partial(tmp_path: Path) -> None:
    """And so does a search that took too long."""
    store = Elasticsearch("logs-*", DOCUMENTS)
    store.more = {"timed_out": True, "_shards": {"total": 2, "failed": 1}}
    async with index(tmp_path, store) as (family, _):
        found = await family.search_logs(search(), {})
    assert found.partial_reason == "it took too long, 1 of 2 shards failed"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, {"error": {"type": "x", "reason": "y"}}, "BACKEND_REFUSED.*x: y"),
        (404, {"error": {"root_cause": [{"type": "index_not_found", "reason": "none"}]}}, "BACKEND_UNAVAILABLE.*none"),
        (503, {"error": "busy"}, "BACKEND_UNAVAILABLE.*busy"),
        (403, {}, "BACKEND_UNAVAILABLE.*credentials"),
        (429, {}, "BACKEND_UNAVAILABLE.*429"),
        (200, {"hits": {"hits": [{"_source": {}}]}}, "BACKEND_UNAVAILABLE.*cannot be read"),
        (200, {"hits": 7}, "BACKEND_UNAVAILABLE.*cannot be read"),
        (200, [], "BACKEND_UNAVAILABLE.*nothing to use"),
    ],
)
async def test_what_an_index_may_answer(tmp_path: Path, status: int, body: Any, words: str) -> None:
    """A wrong question is refused for good, everything else can be asked again."""
    async with index(tmp_path, lambda _: (status, json.dumps(body).encode())) as (family, _):
        with pytest.raises(Refusal, match=words):
            await family.search_logs(search(), {})


async def test_an_index_that_hangs_is_given_up(tmp_path: Path) -> None:
    """Before the caller's own deadline."""
    async with index(tmp_path, lambda _: None) as (family, _):
        with working("service/automation", SEARCH, 0.6), pytest.raises(Refusal, match="BACKEND_UNAVAILABLE"):
            await family.search_logs(search(), {})


async def test_an_api_key_comes_from_a_secret_file(tmp_path: Path) -> None:
    """In the words of Elasticsearch."""
    (tmp_path / "key").write_text("a2V5\n")
    (tmp_path / "key").chmod(0o600)
    async with index(tmp_path, Elasticsearch("logs-*", DOCUMENTS), api_key_file="key") as (family, server):
        await family.search_logs(search(), {})
    assert server.asked[0].headers["authorization"] == "ApiKey a2V5"


def test_words_and_times_of_strangers_never_raise() -> None:
    """An open quote is a word; what is no time is None."""
    assert Words.of('a "b c" -d -"e f" "open') == Words(("a", "b c", '"open'), ("d", "e f"))
    strange: tuple[Any, ...] = ("", "now", None, True, 1e30, -1e30, [], {})
    assert [time_of(one) for one in strange] == [None] * 8
