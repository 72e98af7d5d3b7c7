"""`opsmesh signals send`, `replay` and `storm` against a real bridge: every scheme, waiting, counting, giving up."""

import asyncio
import base64
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.cli.recordings import LINE_MAX
from services.local.layout import DEFAULT_CONFIG
from tests.bridge.house import unavailable
from tests.cli.sending import Outside, listening
from tests.ingest.house import eventually
from tests.mesh.world import ROOT

# What each source needs to be understood at all, after its documentation.
EVENT = {"routing_key": "", "event_action": "trigger", "payload": {"summary": "s", "source": "h", "severity": "error"}}
BODY = {"id": "a-1", "title": "disk is full", "host": "db-1", "status": "firing"}


@pytest.fixture
async def outside(tmp_path: Path) -> AsyncIterator[Outside]:
    """Run a bridge with every scheme."""
    async with listening(tmp_path) as made:
        yield made


def line(source: str, **changes: Any) -> dict[str, Any]:
    """Return a line of a recording."""
    body = EVENT if source == "pagerduty-events" else BODY
    return {"source": source, "body": body | changes}


async def test_every_scheme_is_signed_as_its_sender_would(outside: Outside) -> None:
    """One recording of all sources: each is let in; only SNS is not, for only Amazon signs."""
    names = [name for name in outside.hooks if name != "sns"]
    file = outside.write("all.jsonl", *map(line, names))
    done = await outside.run("signals", "replay", file, "--rate", "0", "--json")
    assert (done.code, done.err) == (0, "")
    assert {one["source"]: one["accepted"] for one in done.answer["sources"]} == dict.fromkeys(names, 1)
    assert sorted(outside.sources()) == sorted(names)
    assert done.answer["total"]["p99_ms"] >= done.answer["total"]["p50_ms"] > 0

    refused = await outside.run("signals", "send", outside.write("one.json", BODY), "--source", "sns")
    assert refused.code == 1
    assert "401" in refused.err
    assert "NEXT: only Amazon can sign for SNS" in refused.err


async def test_every_shipped_source_is_let_in(tmp_path: Path) -> None:
    """With the configuration that ships and the secrets that `up` makes."""
    text = (DEFAULT_CONFIG / "sources.yaml").read_text()
    async with listening(tmp_path, text) as outside:
        names = [name for name in outside.hooks if name != "sns"]
        done = await outside.run("signals", "replay", outside.write("all.jsonl", *map(line, names)), "--rate", "0")
        assert done.code == 0, done.out + done.err
        assert sorted(outside.sources()) == sorted(names)
        assert "all" in done.out
        assert f"{len(names)} sent in" in done.err


async def test_what_is_told_to_come_again_comes_again(outside: Outside) -> None:
    """Both kinds of senders wait as long as they are told, and nothing is lost."""
    outside.ingest.failing = 1
    lines = [line(name, id=number) for number in range(2) for name in ("elastic", "cloudevents", "change")]
    done = await outside.run("signals", "replay", outside.write("r.jsonl", *lines), "--rate", "0", "--json")
    assert done.code == 0
    assert Counter(outside.sources()) == {"elastic": 2, "cloudevents": 2, "change": 2}
    assert done.answer["total"]["retries"] >= 1
    assert done.answer["total"]["accepted"] == 6


async def test_what_nobody_takes_is_counted_and_told(outside: Outside) -> None:
    """Failed after patience ended, rejected at once; exit code 1, and why, most frequent first."""
    outside.ingest.error = unavailable()
    done = await outside.run(
        "signals", "replay", outside.write("r.jsonl", line("grafana")), "--json", "--patience", "0.1"
    )
    total = done.answer["total"]
    assert (done.code, total["sent"], total["failed"], total["accepted"]) == (1, 1, 1, 0)
    assert total["why"] == [{"reason": "503: the delivery could not be stored; come again", "count": 1}]

    outside.ingest.error = None
    done = await outside.run("signals", "replay", outside.write("r.jsonl", "[]", "[]"), "--source", "grafana", "--json")
    assert (done.code, done.answer["total"]["rejected"]) == (1, 2)
    assert done.answer["total"]["why"][0]["reason"].startswith("422: ")


async def test_the_same_delivery_again_is_a_duplicate(outside: Outside) -> None:
    """GitHub's signature of the same bytes is the same delivery; a bearer's is not."""
    lines = outside.write("r.jsonl", line("github"), line("alertmanager"))
    done = await outside.run("signals", "replay", lines, "--repeat", "3", "--concurrency", "1", "--json")
    found = {one["source"]: (one["accepted"], one["duplicates"]) for one in done.answer["sources"]}
    assert (done.code, done.answer["planned"]) == (0, 6)
    assert found == {"github": (1, 2), "alertmanager": (3, 0)}
    assert Counter(outside.sources()) == {"github": 1, "alertmanager": 3}


async def test_a_recording_keeps_bytes_and_headers(outside: Outside) -> None:
    """Bytes that are no JSON come through, what a sender says of its body too; its old proof does not."""
    headers = {
        "X-GitHub-Event": "push",
        "X-Hub-Signature-256": "sha256=old",
        "Host": "elsewhere",
        "Content-Length": "3",
    }
    raw = b'{"title": "caf\xe9", "id": 1, "status": "firing"}'
    told = {"source": "github", "headers": headers, "body_base64": base64.b64encode(raw).decode()}
    done = await outside.run("signals", "replay", outside.write("r.jsonl", told), "--json")
    assert done.code == 0
    (entry,) = outside.ingest.entries
    assert entry.delivery.body == raw
    assert entry.delivery.headers["x-github-event"] == "push"


async def test_a_folder_and_standard_input(outside: Outside) -> None:
    """Below a folder a body's source is the folder it lies in; a line that names its source needs no other word."""
    outside.write("tree/grafana/b.json", BODY)
    outside.write("tree/zabbix/deep/a.json", json.dumps(BODY, indent=2))
    outside.write("tree/SOURCES.md", "no body")
    done = await outside.run("signals", "replay", str(outside.folder / "tree"), "--rate", "0")
    assert done.code == 0, done.err
    assert sorted(outside.sources()) == ["grafana", "zabbix"]

    lines = json.dumps(line("opsgenie")) + "\n\n" + json.dumps(BODY) + "\n"
    done = await outside.run("signals", "replay", "-", "--source", "generic", "--json", stdin=lines.encode())
    assert (done.code, done.answer["planned"], done.answer["total"]["accepted"]) == (0, None, 2)


@pytest.mark.parametrize(
    ("lines", "words", "told"),
    [
        ([line("grafana"), "{"], (), "r.jsonl:2: a body alone does not say who sends it"),
        ([line("grafana"), line("grafan")], (), "there is no source grafan\nNEXT: --source, one of: alertmanager"),
        ([line("grafana"), {"source": "zabbix", "body_base64": "%"}], (), "r.jsonl:2: body_base64 is not base64"),
        ([line("grafana"), line("zabbix") | {"headers": {"a": 1}}], (), "r.jsonl:2: headers are not texts by name"),
        ([line("grafana"), line("zabbix") | {"headers": {"a": "b\r\nc: d"}}], (), "r.jsonl:2: 'a' is no header"),
        ([line("grafana"), line("zabbix") | {"headers": {"\u00e4": "b"}}], (), "r.jsonl:2: '\u00e4' is no header"),
        ([line("grafana"), '{"source": "zabbix", "body": {"a": "\\ud800"}}'], (), "r.jsonl:2: half a character"),
        ([line("grafana"), "x" * (LINE_MAX + 1)], ("--source", "zabbix"), "r.jsonl:2: more than 2097152 bytes"),
        ([line("\u009b31m\x1b]0;title\x07")], (), "there is no source \ufffd31m\ufffd]0;title\ufffd\n"),
        ([], (), "holds nothing to send"),
    ],
)
async def test_what_cannot_be_read_is_told_before_anything_is_sent(
    outside: Outside, lines: list[Any], words: tuple[str, ...], told: str
) -> None:
    """With file and line, and exit code 2."""
    done = await outside.run("signals", "replay", outside.write("r.jsonl", *lines), *words)
    assert done.code == 2
    assert told in done.err
    assert "NEXT: " in done.err
    assert outside.ingest.entries == []


async def test_what_never_ends_is_not_read(outside: Outside) -> None:
    """A device or a pipe is no recording, for it is read twice; what has no end is too large to be sent."""
    done = await outside.run("signals", "replay", "/dev/zero", "--source", "grafana")
    assert (done.code, "/dev/zero is no file\nNEXT: `-`" in done.err) == (2, True)
    done = await outside.run("signals", "send", "/dev/zero", "--source", "grafana")
    assert (done.code, "413" in done.err) == (1, True)


@pytest.mark.parametrize("words", [("send", "-"), ("replay", "-")])
async def test_a_closed_standard_input_is_told(outside: Outside, words: tuple[str, ...]) -> None:
    """As a shell's `<&-` leaves it: a usage error, no trace of the program."""
    code = "import sys; sys.stdin = None; from services.cli.main import main; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "signals", *words, "--source", "generic", "--state", str(outside.state)),
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert b"there is no standard input\nNEXT: " in err
    assert b"Traceback" not in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
async def test_a_folder_that_cannot_be_read_is_told(outside: Outside) -> None:
    """What would be missing is not passed over in silence, and nothing else is sent."""
    file = Path(outside.write("tree/grafana/a.json", BODY))
    outside.write("tree/zabbix/a.json", BODY)
    file.parent.chmod(0)
    done = await outside.run("signals", "replay", str(outside.folder / "tree"))
    file.parent.chmod(0o700)
    assert (done.code, "Permission denied" in done.err) == (1, True)
    assert outside.ingest.entries == []


async def test_the_deepest_body_is_for_the_bridge_to_judge(outside: Outside) -> None:
    """What cannot be read here is sent as it is."""
    file = outside.write("r.jsonl", "[" * 100_000)
    done = await outside.run("signals", "replay", file, "--source", "grafana", "--json")
    assert (done.code, done.answer["total"]["rejected"]) == (1, 1)


async def test_a_secret_that_is_gone_is_told_in_words(outside: Outside) -> None:
    """What was sent before is counted, and no trace of the program is shown."""
    os.unlink(outside.hooks["grafana"]["secret_file"])  # noqa: PTH108  pathlib is not for coroutines
    done = await outside.run("signals", "replay", outside.write("r.jsonl", line("zabbix"), line("grafana")), "--json")
    assert (done.code, done.answer["total"]["accepted"]) == (1, 1)
    assert "NEXT: check the path and its permissions" in done.err
    assert "Traceback" not in done.err


async def test_ctrl_c_shows_what_was_done(outside: Outside) -> None:
    """The counts of what had its answer; exit code 130."""
    file = outside.write("r.jsonl", *[line("grafana", id=number) for number in range(50)])
    # As at a terminal: a test may run where the signal is ignored.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from services.cli.main import main; main()"
    )
    words = ("signals", "replay", file, "--rate", "2", "--json", "--state", str(outside.state))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *words),
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
        stdout=asyncio.subprocess.PIPE,
    )

    async def under_way() -> bool:
        return len(outside.ingest.entries) > 1

    await eventually(under_way, 30)
    process.send_signal(signal.SIGINT)
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    answer = json.loads(out)
    assert answer["planned"] == 50
    assert 1 <= answer["total"]["accepted"] <= len(outside.ingest.entries) < 50


async def test_send_says_what_to_do(outside: Outside) -> None:
    """Each answer has a next step; what is accepted shows its signals, with --json as the sender gets it."""
    good = outside.write("good.json", BODY)
    done = await outside.run("signals", "send", good, "--source", "change", "--json")
    assert done.answer == {"results": [{"signal_id": outside.ingest.entries[0].signals[0].signal_id}]}
    done = await outside.run("signals", "send", good, "--source", "github", "-H", "X-GitHub-Event: push")
    assert outside.ingest.entries[1].delivery.headers["x-github-event"] == "push"
    assert "accepted " in done.out

    for words, code, told in (
        (("--source", "grafan"), 2, "NEXT: --source, one of: alertmanager"),
        (("-H", "no colon"), 2, "is no header"),
        ((), 1, "come again after 2 s"),
    ):
        outside.ingest.error = unavailable() if code == 1 else None
        done = await outside.run("signals", "send", good, *words)
        assert (done.code, told in done.err) == (code, True), done.err
    outside.ingest.error = None
    done = await outside.run("signals", "send", outside.write("bad.json", "nonsense"), "--source", "grafana")
    assert done.code == 1
    assert "NEXT: it is kept: opsmesh signals dead-letters --source grafana" in done.err

    # The bridge reads a secret again when its file changes, and so does the sender: only an old mesh's is wrong.
    hook = outside.hooks["grafana"] | {"secret_file": outside.write("other", "grafana:other")}
    endpoints = json.loads((outside.state / "endpoints.json").read_text())
    endpoints["webhooks"]["grafana"] = hook
    (outside.state / "endpoints.json").write_text(json.dumps(endpoints))
    done = await outside.run("signals", "send", good, "--source", "grafana")
    assert done.code == 1
    assert f"{hook['secret_file']} is not what the bridge knows" in done.err
    outside.write("other", "")
    done = await outside.run("signals", "send", good, "--source", "grafana")
    assert (done.code, "is empty" in done.err) == (2, True)


async def test_a_bridge_that_is_away_is_exit_code_3(outside: Outside) -> None:
    """Nobody listens there."""
    endpoints = (outside.state / "endpoints.json").read_text().replace(outside.bridge.url, "http://127.0.0.1:1")
    (outside.state / "endpoints.json").write_text(endpoints)
    done = await outside.run("signals", "send", outside.write("good.json", BODY))
    assert (done.code, "the bridge does not answer" in done.err) == (3, True)


async def test_a_storm_has_as_many_causes_as_it_was_told(outside: Outside) -> None:
    """Every alert once, each cause in every part; with --resolve every one of them is over in the end."""
    async with listening(outside.folder / "own", "sources: [{source: alertmanager, bearer: {}}]") as own:
        words = ("--alerts", "105", "--causes", "5", "--batch", "20", "--rate", "0", "--resolve", "--json")
        done = await own.run("signals", "storm", *words)
        assert (done.code, done.answer["total"]["accepted"]) == (0, 12)
        bodies = [json.loads(one.delivery.body) for one in own.ingest.entries]
    alerts = [alert for body in bodies for alert in body["alerts"]]
    assert Counter(one["status"] for one in alerts) == {"firing": 105, "resolved": 105}
    assert len({one["fingerprint"] for one in alerts}) == 105
    assert len({one["labels"]["service"] for one in bodies[0]["alerts"]}) == 5
