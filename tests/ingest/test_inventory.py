"""An inventory that comes after the alert: what it makes known is decided anew, whatever the order of the two."""

from services.ingest.domain import Inventory, InventoryMatch
from tests.ingest.house import House, alert, entry, notification

KNOWN = InventoryMatch("svc:demo/checkout", "demo", "local")


def inventory(version: int) -> Inventory:
    """Return an inventory of that version which knows the target."""
    return Inventory([(KNOWN, [])], version)


async def test_a_decided_incident_without_a_target_is_decided_anew(house: House) -> None:
    """Decided under an older inventory: a new revision, with the target; looked up once per version."""
    await house.store.record([entry(notification(alert()))], Inventory(version=1))
    await house.pool.execute("UPDATE incidents SET needs_decision = false, following = true, state = 'AWAITING_MODEL'")
    assert await house.store.relocate(inventory(2)) == 1
    assert await house.store.relocate(inventory(2)) == 0
    row = (await house.rows("SELECT state, revision, needs_decision, following, target_ids FROM incidents"))[0]
    assert tuple(row) == ("OPEN", 2, True, False, ["svc:demo/checkout"])


async def test_an_undecided_incident_keeps_its_revision(house: House) -> None:
    """Every revision has exactly one decision: one that still waits for its own is only given the target."""
    await house.store.record([entry(notification(alert()))], Inventory(version=1))
    assert await house.store.relocate(inventory(2)) == 1
    incident = (await house.store.get(str((await house.rows("SELECT incident_id FROM incidents"))[0][0])))[0]
    assert (incident.revision, incident.targets[0].in_inventory, incident.targets[0].environment) == (1, True, "demo")


async def test_what_was_written_while_the_inventory_changed_is_found(house: House) -> None:
    """A batch that was looked up in the old inventory, but committed after the new one was taken over."""
    assert await house.store.relocate(inventory(2)) == 0
    await house.store.record([entry(notification(alert()))], Inventory(version=1))
    assert await house.store.relocate(inventory(2)) == 1


async def test_what_is_being_worked_on_stays(house: House) -> None:
    """A running incident is left alone."""
    await house.store.record([entry(notification(alert()))], Inventory(version=1))
    await house.pool.execute("UPDATE incidents SET needs_decision = false, state = 'RUNNING'")
    assert await house.store.relocate(inventory(2)) == 0
    assert (await house.rows("SELECT revision FROM incidents"))[0][0] == 1
