"""What services/README.md says about how long things are kept is about every table there is."""

import re

from tests.house.source import ROOT

# Each schema has them; the table names them without their schema.
EVERYWHERE = {"requests", "outbox"}


def test_every_table_has_its_line() -> None:
    """Each table of each migration is named in the section on retention, and no other."""
    text = (ROOT / "services" / "README.md").read_text(encoding="utf-8")
    named = set()
    for line in text.partition("# What is kept")[2].splitlines():
        schema = ""
        for word in re.findall(r"`((?:[a-z]+)?\.[a-z_]+)`", line):
            before, _, table = word.partition(".")
            schema = before or schema
            named.add(f"{schema}.{table}")
    made = {
        found
        for path in ROOT.glob("services/*/migrations/*.sql")
        for found in re.findall(r"(?m)^CREATE TABLE ([a-z_.]+)", path.read_text(encoding="utf-8"))
    }
    assert named == {one for one in made if one.partition(".")[2] not in EVERYWHERE}
