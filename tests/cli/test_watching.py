"""`opsmesh incidents watch`: what it makes of one answer after the other, at any width, and without a terminal."""

import io
import json
import uuid

import pytest
from rich.console import Console

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.type.v1 import error_reason_pb2
from services.cli.output import json_text
from services.cli.watching import Sums, Watch, lines, picture
from services.mesh.errors import Refusal
from tests.cli.mesh import Mesh


def incident(number: int, signals: int, *, duplicates: int = 0, flapping: bool = False) -> ingest.Incident:
    """Return an open incident; its title is what a hostile sender might write."""
    return ingest.Incident(
        incident_id=str(uuid.UUID(int=number)),
        title=f"[red]cause[/red] {number}\nis down\x1b[31m",
        state=ingest.Incident.STATE_AWAITING_MODEL,
        state_detail="no rule matches",
        signal_count=signals,
        alert_count=signals - duplicates,
        duplicate_count=duplicates,
        firing=True,
        flapping=flapping,
        labels={"replica": "x" * 100},
    )


def answer(*incidents: ingest.Incident, more: bool = False) -> ingest.ListIncidentsResponse:
    """Return them as they are listed: the newest first."""
    return ingest.ListIncidentsResponse(incidents=reversed(incidents), next_page_token="more" if more else "")


def drawn(watch: Watch, content: ingest.ListIncidentsResponse, width: int, height: int) -> list[str]:
    """Return the lines of the picture."""
    out = io.StringIO()
    rows, sums = watch.see(content, 0.0)
    Console(file=out, width=width, height=height).print(picture(rows, sums, width, height))
    return [one.rstrip() for one in out.getvalue().splitlines()]


def test_a_storm_is_one_row_a_cause() -> None:
    """However many alerts join between two looks: rows stay in their places, rates and sums are those of the looks."""
    watch = Watch()
    _, sums = watch.see(answer(incident(1, 7)), 100.0)
    assert (sums.signals, sums.incidents, sums.grown, sums.rate) == (7, 1, 0, 0.0)
    rows, sums = watch.see(answer(incident(1, 7), incident(2, 10_000, duplicates=4000), incident(3, 500)), 102.0)
    assert [row.incident.incident_id[-1] for row in rows] == ["1", "2", "3"]
    assert [row.rate for row in rows] == [0.0, 5000.0, 250.0]
    assert [row.changed for row in rows] == [False, True, True]
    assert (sums.signals, sums.duplicates, sums.incidents, sums.grown, sums.rate) == (10_507, 4000, 3, 10_500, 5250.0)
    assert "10,507 signals in (4,000 of them duplicates), 3 open incidents out: 3,502 to 1" in sums.words


def test_what_is_over_is_counted_and_what_is_beyond_the_page_is_not() -> None:
    """An incident that left the list is over, unless newer ones pushed it out."""
    watch = Watch()
    watch.see(answer(incident(1, 1), incident(2, 1)), 1.0)
    _, sums = watch.see(answer(incident(2, 1), incident(3, 1), more=True), 2.0)
    assert (sums.closed, "older ones are not counted" in sums.words) == (0, True)
    _, sums = watch.see(answer(incident(3, 1)), 3.0)
    assert (sums.closed, sums.news) == (1, True)
    _, sums = watch.see(answer(), 4.0)
    assert (sums.closed, "nothing is open" in sums.words) == (2, True)


@pytest.mark.parametrize("width", [60, 80, 110, 130, 170, 220])
def test_a_row_is_one_line_at_any_width(width: int) -> None:
    """Counts are whole, titles give way; an id is whole or not there at all; strangers' words move no cursor."""
    found = drawn(Watch(), answer(*[incident(one, 123_456, flapping=one == 2) for one in (1, 2, 3)]), width, 24)
    assert len(found) == 6
    assert all(len(one) <= width for one in found)
    assert all("123,456" in one and "AWAITING_MODEL" in one for one in found[2:5])
    assert ["flapping" in one for one in found[2:5]] == [False, True, False]
    assert all(str(uuid.UUID(int=1)) in one for one in found[2:3] if width >= 110)
    assert "\x1b[31m" not in "".join(found)


def test_what_has_no_room_is_counted() -> None:
    """The newest stay in sight."""
    found = drawn(Watch(), answer(*[incident(one, 1) for one in range(1, 31)]), 120, 14)
    assert len(found) == 13
    assert found[-1] == "and 20 older ones: opsmesh incidents list"
    assert found[-2].endswith(str(uuid.UUID(int=30)))


def test_where_there_is_no_terminal_only_news_is_told() -> None:
    """One line for each incident that changed, and the sums before; nothing when nothing changed."""
    watch = Watch()
    told = lines(*watch.see(answer(incident(1, 5), incident(2, 5, flapping=True)), 1.0))
    assert len(told) == 3
    assert "AWAITING_MODEL flapping  alerts=5 signals=5 duplicates=0 per_second=0 [red]cause[/red] 2 is down" in told[2]
    assert all(one.isprintable() for one in told)
    assert lines(*watch.see(answer(incident(1, 5), incident(2, 5, flapping=True)), 2.0)) == []
    told = lines(*watch.see(answer(incident(1, 5), incident(2, 9, flapping=True)), 4.0))
    assert len(told) == 2
    assert "per_second=2 " in told[1]
    assert lines(*Watch().see(answer(), 0.0)) == [Sums(0, 0, 0, 0, 0.0, 0, more=False, news=True).words]


async def test_a_watch_of_a_storm(mesh: Mesh) -> None:
    """The command asks for pages up to its limit: 40 a page here; a pipe gets lines, --json one answer a line."""
    mesh.ingest.incidents.extend(incident(one, 1000) for one in range(90))
    done = await mesh.run("incidents", "watch", "--seconds", "0.1", "--limit", "60")
    assert done.code == 0
    told = done.out.splitlines()
    assert len(told) == 61
    assert told[0].startswith("60,000 signals in (0 of them duplicates), 60 open incidents out: 1,000 to 1; older ones")
    done = await mesh.run("incidents", "watch", "--seconds", "3", "--every", "0.2", "--json")
    counts = [len(json.loads(one)["incidents"]) for one in done.out.splitlines()]
    assert len(counts) > 1
    assert set(counts) == {90}


async def test_a_watch_outlives_a_look_that_found_no_room(mesh: Mesh) -> None:
    """It says so and looks again; a first look without an answer ends it, as any command."""
    mesh.ingest.incidents.append(incident(1, 7))
    full = Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, retry_after=0.1, limit="40 calls a minute")
    mesh.ingest.refusals = [None, full]
    done = await mesh.run("incidents", "watch", "--seconds", "10", "--every", "3", "--json")
    assert done.code == 0
    assert len(done.out.splitlines()) > 1
    assert "looking again in 2 s: OVERLOADED" in done.err
    mesh.ingest.refusals = [full]
    done = await mesh.run("incidents", "watch", "--seconds", "10")
    assert (done.code, done.out) == (1, "")


async def test_a_watch_at_a_terminal(mesh: Mesh) -> None:
    """The table is drawn in its place and ends whole."""
    mesh.ingest.incidents.extend(incident(one, 1000) for one in range(3))
    done = await mesh.run_at_terminal("", "incidents", "watch", "--seconds", "0.1")
    assert done.code == 0
    assert "3,000 signals in" in done.out
    assert done.out.count("AWAITING_MODEL") == 3


def test_json_obeys_no_stranger() -> None:
    """What a terminal would obey is escaped, also beyond ASCII, and read back as it was; letters stay letters."""
    title = "caf\u00e9 \u9ad8 \x1b[31m\u009b31m\u202e\u2028\x7f\U000e0001 end"
    text = json_text({"title": title}, indent=2)
    assert json.loads(text) == {"title": title}
    assert "caf\u00e9 \u9ad8" in text
    assert all(one.isprintable() for one in text.split("\n"))
