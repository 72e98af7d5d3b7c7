"""The bridge from the outside: real HTTP, the real app, an ingest in memory."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.bridge import batches
from services.bridge.health import Readiness
from services.bridge.senders.doors import load_doors
from services.mesh.errors import BootError
from tests.bridge.bad import BAD, BIG
from tests.bridge.house import BASIC, BEARER, Bridge, MemoryIngest, running, unavailable, write_config
from tests.ingest.house import alert, eventually, notification

GOOD = notification(alert())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a configuration folder."""
    return write_config(tmp_path_factory.mktemp("bridge"))


@pytest.fixture
def ingest() -> MemoryIngest:
    """Give an ingest in memory."""
    return MemoryIngest()


@pytest.fixture
async def bridge(folder: Path, ingest: MemoryIngest) -> AsyncIterator[Bridge]:
    """Give a running bridge."""
    async with running(folder, ingest) as made:
        yield made


async def test_a_webhook_is_answered_with_its_signals(bridge: Bridge, ingest: MemoryIngest) -> None:
    """202 with one signal_id per alert, after ingest has answered; the bytes and facts arrive as they were."""
    body = notification(alert("one"), alert("two"))
    answer = await bridge.post(body, headers=BEARER | {"Content-Type": "application/json; charset=utf-8"})
    assert answer.status_code == 202
    entry = ingest.entries[0]
    assert answer.json() == {"results": [{"signal_id": one.signal_id} for one in entry.signals]}
    assert entry.delivery.body == body
    assert entry.delivery.content_type == "application/json; charset=utf-8"
    assert entry.delivery.authenticity.verified


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/webhooks/alertmanager", {"Authorization": "Bearer old-secret"}),
        ("/v1/webhooks/alertmanager", {"Authorization": "bearer  new-secret"}),
        ("/api/alert/webhook", BEARER),
        ("/api/webhook", BEARER),
        ("/v1/webhooks/grafana", BASIC),
        ("/v1/webhooks/headed", {"x-secret": "s3cret"}),
        ("/v1/webhooks/open", {}),
    ],
)
async def test_good_credentials_open_the_door(bridge: Bridge, path: str, headers: dict[str, str]) -> None:
    """Each scheme, each secret of a file, and the two fixed paths."""
    assert (await bridge.post(GOOD, path, headers)).status_code == 202


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/webhooks/alertmanager", {}),
        ("/v1/webhooks/alertmanager", {"Authorization": ""}),
        ("/v1/webhooks/alertmanager", {"Authorization": "Bearer"}),
        ("/v1/webhooks/alertmanager", {"Authorization": "Bearer wrong"}),
        ("/v1/webhooks/alertmanager", {"Authorization": "new-secret"}),
        ("/v1/webhooks/alertmanager", {"Authorization": "Basic new-secret"}),
        ("/v1/webhooks/alertmanager", {"Authorization": "Bearer old-secret\\nnew-secret"}),
        ("/v1/webhooks/grafana", {"Authorization": "Basic !!!"}),
        ("/v1/webhooks/grafana", {"Authorization": "Basic Z3JhZmFuYTpwYXNz"}),
        ("/v1/webhooks/headed", {"X-Secret": ""}),
        ("/v1/webhooks/headed", {"Authorization": "Bearer s3cret"}),
        ("/api/alert/webhook", {"Authorization": "Bearer wrong"}),
    ],
)
async def test_bad_credentials_get_a_small_401(
    bridge: Bridge, ingest: MemoryIngest, path: str, headers: dict[str, str]
) -> None:
    """401 that does not say why, and nothing reaches ingest."""
    answer = await bridge.post(GOOD, path, headers)
    assert answer.status_code == 401
    assert len(answer.content) < 64
    assert not ingest.entries


async def test_unknown_sources_paths_and_methods(bridge: Bridge) -> None:
    """404 for what does not exist, 405 for what is not posted."""
    assert (await bridge.post(GOOD, "/v1/webhooks/nobody")).status_code == 404
    # What people say in chats comes from the router alone.
    assert (await bridge.post(GOOD, "/v1/webhooks/chat")).status_code == 404
    assert (await bridge.post(BIG, "/v1/webhooks/nobody")).status_code == 413
    assert (await bridge.post(GOOD, "/v1/webhooks/..%2f..%2fetc")).status_code == 404
    assert (await bridge.http.get(bridge.url + "/v1/webhooks/alertmanager")).status_code == 405
    assert (await bridge.http.delete(bridge.url + "/api/webhook")).status_code == 405


@pytest.mark.parametrize("name", sorted(BAD))
async def test_bad_input(bridge: Bridge, ingest: MemoryIngest, name: str) -> None:
    """The documented status with field paths; what was authenticated and not understood is kept as it came."""
    bad = BAD[name]
    answer = await bridge.post(bad.body, f"/v1/webhooks/{bad.source}", BASIC if bad.source == "grafana" else BEARER)
    assert answer.status_code == bad.status, answer.text
    if bad.status == 422:
        assert [one["field"] for one in answer.json()["errors"]] == bad.fields
        assert all(one["description"] for one in answer.json()["errors"])
        assert ingest.entries[0].delivery.body == bad.body
    assert (await bridge.post(GOOD)).status_code == 202


async def test_a_patient_source_answers_202_to_what_it_does_not_understand(bridge: Bridge) -> None:
    """With MALFORMED_ANSWER_ACCEPT the sender hears 202 with the id of the row that tells of it."""
    answer = await bridge.post(b"not json", "/v1/webhooks/patient")
    assert answer.status_code == 202
    assert len(answer.json()["results"]) == 1


async def test_more_than_sixteen_mebibytes_are_not_read(bridge: Bridge) -> None:
    """A body that is announced as endless is refused at once, and the connection closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(bridge.url.rpartition(":")[2]))
    head = b"POST /v1/webhooks/alertmanager HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer new-secret\r\n"
    writer.write(head + b"Content-Length: 99999999999\r\n\r\n{")
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 413")
    writer.close()


async def test_a_large_body_is_read_and_refused_and_the_connection_closed(bridge: Bridge) -> None:
    """Above 1 MiB: read to its end so that the sender hears the answer, 413, Connection: close."""
    answer = await bridge.post(BIG)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")


async def test_ingest_away_is_503_with_retry_after(bridge: Bridge, ingest: MemoryIngest) -> None:
    """When ingest cannot take it the sender is asked to come again, and is served once it can."""
    ingest.error = unavailable()
    answer = await bridge.post(GOOD)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    ingest.error = None
    assert (await bridge.post(GOOD)).status_code == 202


async def test_a_full_queue_is_503_and_nothing_accepted_is_lost(folder: Path, ingest: MemoryIngest) -> None:
    """Beyond the bound senders hear 503 at once; those who wait are answered 202 when ingest goes on."""
    ingest.gate.clear()
    async with running(folder, ingest, items_max=10) as bridge:
        posts = [asyncio.create_task(bridge.post(GOOD)) for _ in range(60)]
        refused = await eventually(lambda: _finished(posts, 40))
        assert {one.status_code for one in refused} == {503}
        ingest.gate.set()
        answers = [await one for one in posts]
    accepted = [one for one in answers if one.status_code == 202]
    assert len(accepted) == len(ingest.entries) == 60 - sum(one.status_code == 503 for one in answers)


async def _finished(posts: list[asyncio.Task[httpx.Response]], count: int) -> list[httpx.Response]:
    done = [one.result() for one in posts if one.done()]
    return done if len(done) >= count else []


async def test_deliveries_that_arrive_meanwhile_share_a_batch(
    bridge: Bridge, ingest: MemoryIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls at once at most; what comes meanwhile goes together, none twice."""
    monkeypatch.setattr(batches, "DEADLINE", 60.0)
    ingest.gate.clear()
    posts = [asyncio.create_task(bridge.post(GOOD)) for _ in range(100)]
    await eventually(lambda: _arrived(bridge, 100))
    ingest.gate.set()
    assert {(await one).status_code for one in posts} == {202}
    assert sum(ingest.batches) == 100
    assert len(ingest.batches) < 5
    assert len({one.delivery.delivery_id for one in ingest.entries}) == 100


async def _arrived(bridge: Bridge, count: int) -> bool:
    return len(bridge.batches._waiting) + bridge.batches._away.total() == count


async def test_the_trace_of_the_sender_goes_on(bridge: Bridge, ingest: MemoryIngest) -> None:
    """A W3C traceparent is continued with a new span; without a valid one a trace begins."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    await bridge.post(GOOD, headers=BEARER | {"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    await bridge.post(GOOD, headers=BEARER | {"traceparent": "rubbish"})
    continued, begun = (one.delivery.traceparent.split("-") for one in ingest.entries)
    assert continued[1] == trace
    assert continued[2] != "b7ad6b7169203331"
    assert len(begun[1]) == 32
    assert begun[1] != trace


async def test_health_and_metrics(bridge: Bridge) -> None:
    """/healthz is alive, /readyz says what is degraded and 503 when nothing can be accepted, /metrics counts."""
    bridge.readiness = Readiness(ready=True, degraded=("postgres",))
    answer = await bridge.http.get(bridge.url + "/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "degraded": ["postgres"]})
    bridge.readiness = Readiness(ready=False, degraded=("valkey",))
    answer = await bridge.http.get(bridge.url + "/readyz")
    assert (answer.status_code, answer.json()["degraded"]) == (503, ["valkey"])
    assert (await bridge.http.get(bridge.url + "/healthz")).status_code == 200
    await bridge.post(GOOD)
    assert (
        'opsmesh_webhooks_total{code="202",source="alertmanager"}'
        in (await bridge.http.get(bridge.url + "/metrics")).text
    )


async def test_a_rotated_secret_is_taken_over_without_a_restart(tmp_path: Path, ingest: MemoryIngest) -> None:
    """A secret written into the file later opens the door at its first use."""
    async with running(write_config(tmp_path), ingest) as bridge:
        fresh = {"Authorization": "Bearer fresh"}
        assert (await bridge.post(GOOD, headers=fresh)).status_code == 401
        (tmp_path / "alertmanager").write_text("fresh\n")
        assert (await bridge.post(GOOD, headers=fresh)).status_code == 202
        assert (await bridge.post(GOOD, headers=BEARER)).status_code == 401


async def test_a_secret_written_within_a_tick_of_the_clock_counts(tmp_path: Path, ingest: MemoryIngest) -> None:
    """A file that is changed twice within a tick, or replaced by one as old, is read again."""
    async with running(write_config(tmp_path), ingest) as bridge:
        file, fresh = tmp_path / "alertmanager", {"Authorization": "Bearer fresh-secret"}
        time = file.stat().st_mtime_ns
        other = tmp_path / "other"
        other.write_text("fresh-secret\nold-secret\n")
        other.chmod(0o600)
        os.utime(other, ns=(time, time))
        other.rename(file)
        assert (await bridge.post(GOOD, headers=fresh)).status_code == 202
        file.write_text("new-secret\n")
        os.utime(file, ns=(time, time))
        assert (await bridge.post(GOOD, headers=fresh)).status_code == 401


async def test_a_revoked_secret_opens_no_door_any_more(tmp_path: Path, ingest: MemoryIngest) -> None:
    """A secret taken out of the file is refused at once, also when nobody offered an unknown one in between."""
    async with running(write_config(tmp_path), ingest) as bridge:
        leaked = {"Authorization": "Bearer old-secret"}
        assert (await bridge.post(GOOD, headers=leaked)).status_code == 202
        (tmp_path / "alertmanager").write_text("new-secret\n")
        assert (await bridge.post(GOOD, headers=leaked)).status_code == 401
        assert (await bridge.post(GOOD, headers=BEARER)).status_code == 202


@pytest.mark.parametrize("content", [None, "", " \n\n"])
def test_a_missing_or_empty_secret_is_a_boot_error(tmp_path: Path, content: str | None) -> None:
    """The error names the file and the mend; nobody is let in by a missing file."""
    write_config(tmp_path)
    (tmp_path / "grafana").unlink() if content is None else (tmp_path / "grafana").write_text(content)
    with pytest.raises(BootError) as caught:
        load_doors(tmp_path, tmp_path)
    assert str(tmp_path / "grafana") in str(caught.value)
    assert "NEXT: " in str(caught.value)
    assert "none: {}" in str(caught.value)


def test_a_typo_in_sources_names_file_and_line(tmp_path: Path) -> None:
    """An unknown field is refused with where it stands."""
    write_config(tmp_path, "sources:\n  - source: generic\n    bearr: {}\n")
    with pytest.raises(BootError, match=r"sources\.yaml:3: sources\[0\]\.bearr"):
        load_doors(tmp_path, tmp_path)


async def test_the_answer_of_a_thousand_alerts_fits(bridge: Bridge) -> None:
    """The most alerts of a notification: a thousand signal ids come back; what is beyond them is told at their end."""
    body = json.dumps({"alerts": [{"status": "firing", "labels": {"n": str(n)}} for n in range(1003)]}).encode()
    *results, last = (await bridge.post(body)).json()["results"]
    assert [list(one) for one in results] == [["signal_id"]] * 1000
    assert last["errors"][0]["field"] == "alerts[1000:]"
    assert last["errors"][0]["description"].startswith("3 beyond the first 1000")


async def test_a_request_with_several_alerts_is_answered_for_each(bridge: Bridge, ingest: MemoryIngest) -> None:
    """The answer at a place is about the alert at that place: its signal, or why it was not understood."""
    body = json.dumps({"alerts": [alert("one"), "two", alert("three"), {"status": "firing"}]}).encode()
    results = (await bridge.post(body)).json()["results"]
    first, third = (one.signal_id for one in ingest.entries[0].signals)
    assert [results[0], results[2]] == [{"signal_id": first}, {"signal_id": third}]
    assert [one["errors"][0]["field"] for one in (results[1], results[3])] == ["alerts[1]", "alerts[3].labels"]
