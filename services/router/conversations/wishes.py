"""Wishes: what was confirmed is handed to ingest once, becomes one incident, and is decided as it was confirmed."""

import asyncio
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import grpc.aio
import structlog

from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc, signal_pb2
from services.mesh.call import working
from services.mesh.errors import from_rpc_error
from services.mesh.loop import every
from services.mesh.postgres import Connection, Pool
from services.router.conversations import domain
from services.router.conversations.domain import Message, WishState
from services.router.conversations.plans import Plan
from services.router.conversations.tokens import Minter, message_digest
from services.router.domain import Order, Outcome, Snapshot, State, Verdict, shorten

SOURCE: Final = "chat"
PERIOD: Final = 1.0
CALL_SECONDS: Final = 5.0
BATCH: Final = 16
# Handing in may take WISH_AGE, and ingest and the router as long again.
TAKE_AGE: Final = domain.WISH_AGE * 3
PLAN: Final = "outcome, name, version, digest, target_ids, goal, title, changes, tells, environments"
COLUMNS: Final = (
    f"wish_id, conversation_id, person, state, detail, {PLAN}, model_outcome, recorded, confirmed_by, message_digest, "
    "confirm_time, signal_id, incident_id, subject"
)
INSERT: Final = f"""
INSERT INTO wishes (wish_id, conversation_id, person, state, {PLAN}, model_outcome, recorded, subject)
VALUES ($1, $2, $3, 'ASKED', $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
ON CONFLICT DO NOTHING RETURNING {COLUMNS}
"""  # noqa: S608  constants only
CONFIRM: Final = f"""
UPDATE wishes SET state = 'CONFIRMED', confirmed_by = $2, message_digest = $3, confirm_time = clock_timestamp(),
    -- Whoever confirms hands it in at once; the worker follows where that failed.
    due_time = clock_timestamp() + interval '5 seconds'
WHERE wish_id = $1 AND state = 'ASKED' RETURNING {COLUMNS}
"""  # noqa: S608  constants only
READ: Final = f"SELECT {COLUMNS} FROM wishes WHERE wish_id = $1"  # noqa: S608  constants only
CONFIRMED_BY: Final = f"SELECT {COLUMNS} FROM wishes WHERE confirmed_by = $1"  # noqa: S608  constants only
CLAIM: Final = f"""
UPDATE wishes SET due_time = clock_timestamp() + interval '10 seconds'
WHERE wish_id IN (
    SELECT wish_id FROM wishes WHERE state = 'CONFIRMED' AND due_time <= clock_timestamp()
    ORDER BY due_time LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING {COLUMNS}
"""  # noqa: S608  constants only
LAPSE: Final = """
UPDATE wishes SET state = 'DROPPED', detail = 'it could not be handed in for too long'
WHERE state = 'CONFIRMED' AND confirm_time < clock_timestamp() - $1::interval
"""
HANDED: Final = """
UPDATE wishes SET state = 'HANDED_IN', signal_id = $2 WHERE wish_id = $1 AND state = 'CONFIRMED'
"""
REFUSED: Final = "UPDATE wishes SET state = 'DROPPED', detail = $2 WHERE wish_id = $1 AND state = 'CONFIRMED'"
# The first incident that shows it has it; no other ever gets it.
BIND: Final = f"""
UPDATE wishes SET incident_id = $1, state = 'HANDED_IN'
WHERE confirmed_by = $2 AND conversation_id = $3 AND message_digest = $4 AND state IN ('CONFIRMED', 'HANDED_IN')
  AND (incident_id IS NULL OR incident_id = $1)
  AND confirm_time > clock_timestamp() - $5::interval
  AND target_ids @> $6::text[] AND target_ids <@ $6::text[]
RETURNING {COLUMNS}
"""  # noqa: S608  constants only
log = structlog.get_logger("opsmesh.router.wishes")


@dataclass(frozen=True, slots=True)
class Read:
    """What a model read: its serialised ModelOutcome, whether that was replayed, and what the incident is called."""

    outcome: bytes
    recorded: bool
    subject: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A wish as it is kept; `model_outcome` is a serialised ModelOutcome, `subject` what its incident is called."""

    wish_id: uuid.UUID
    conversation_id: uuid.UUID
    person: str
    state: WishState
    detail: str
    plan: Plan
    model_outcome: bytes
    recorded: bool
    confirmed_by: uuid.UUID | None
    message_digest: bytes
    confirm_time: datetime | None
    signal_id: str
    incident_id: uuid.UUID | None
    subject: str


class Wishes:
    """Keeps wishes, hands them in, and tells the decision what was confirmed."""

    def __init__(self, pool: Pool, ingest: "ingest_service_pb2_grpc.IngestServiceAsyncStub", minter: Minter) -> None:
        self._pool = pool
        self._ingest = ingest
        self._minter = minter

    async def keep(self, connection: Connection, said: tuple[Message, str], plan: Plan, read: Read) -> Kept | None:
        """Keep the wish that a message of a person was read as; it waits for a yes. None when there is one already."""
        message, person = said
        row = await connection.fetchrow(
            INSERT,
            message.message_id,
            message.conversation_id,
            person,
            plan.outcome,
            plan.name,
            plan.version,
            plan.digest,
            list(plan.target_ids),
            plan.goal,
            plan.title,
            list(plan.changes),
            list(plan.tells),
            list(plan.environments),
            read.outcome,
            read.recorded,
            read.subject,
        )
        return _kept(row) if row else None

    async def confirm(self, connection: Connection, wish_id: uuid.UUID, by: Message) -> Kept | None:
        """Confirm a wish by a message of its person, once; None when it is not asked about any more."""
        digest = message_digest(by.message_id, by.text)
        row = await connection.fetchrow(CONFIRM, wish_id, by.message_id, digest)
        return _kept(row) if row else None

    async def read(self, wish_id: uuid.UUID) -> Kept | None:
        """Return a wish."""
        row = await self._pool.fetchrow(READ, wish_id)
        return _kept(row) if row else None

    async def confirmed_by(self, message_id: uuid.UUID) -> Kept | None:
        """Return the wish that a message confirmed."""
        row = await self._pool.fetchrow(CONFIRMED_BY, message_id)
        return _kept(row) if row else None

    async def of(self, snapshot: Snapshot) -> Verdict | None:
        """Return what was confirmed for an incident of a chat, and bind it to that incident for ever.

        None when nobody confirmed it, another incident has it, or the incident is about other targets.
        """
        try:
            message_id = uuid.UUID(snapshot.facts["labels.message_id"])
            conversation = uuid.UUID(snapshot.facts["labels.conversation_id"])
            digest = bytes.fromhex(snapshot.facts["labels.message_digest"])
        except (KeyError, ValueError):
            return None
        about = list(snapshot.target_ids)
        row = await self._pool.fetchrow(BIND, snapshot.incident_id, message_id, conversation, digest, TAKE_AGE, about)
        if row is None:
            log.warning("an incident of a chat without a wish of its own", incident_id=str(snapshot.incident_id))
            return None
        return self._verdict(_kept(row))

    async def hand_in(self, kept: Kept) -> str:
        """Hand a confirmed wish to ingest; return why that did not work, or nothing."""
        delivery = ingest_service_pb2.Delivery(
            delivery_id=str(domain.delivery_id(kept.wish_id)),
            source=SOURCE,
            body=_body(kept),
            content_type="application/json",
            authenticity=signal_pb2.Authenticity(method=signal_pb2.Authenticity.METHOD_MTLS, verified=True),
        )
        # Not the present moment: the same delivery again must be the same.
        delivery.receive_time.FromDatetime(kept.confirm_time or datetime.now(UTC))
        try:
            answer = await self._ingest.SubmitSignals(
                ingest_service_pb2.SubmitSignalsRequest(deliveries=[delivery]), timeout=CALL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            log.warning("a wish is not handed in yet", wish_id=str(kept.wish_id), error=str(refusal or error.code()))
            return "ingest does not take it now; it is tried again for some minutes"
        result = answer.results[0]
        if result.state != ingest_service_pb2.DeliveryResult.STATE_ACCEPTED:
            why = "; ".join(f"{one.field}: {one.description}" for one in result.errors) or "unknown source"
            await self._pool.execute(REFUSED, kept.wish_id, f"ingest refuses it: {why}"[:512])
            return f"ingest refuses it: {why}"
        await self._pool.execute(HANDED, kept.wish_id, result.signal_ids[0])
        return ""

    async def run(self, stop: asyncio.Event) -> None:
        """Hand in what was confirmed and not handed in at once, until `stop`."""
        await every(stop, PERIOD, self.again)

    async def again(self) -> None:
        """Drop what nobody expects any more, and try the rest again."""
        await self._pool.execute(LAPSE, domain.WISH_AGE)
        for row in await self._pool.fetch(CLAIM, BATCH):
            kept = _kept(row)
            with working("service/router", "router/wishes", CALL_SECONDS, on_behalf_of=kept.person):
                await self.hand_in(kept)

    def _verdict(self, kept: Kept) -> Verdict:
        """Return a bound wish as it was confirmed, with the token of the person who confirmed it."""
        said = kept.confirm_time or datetime.now(UTC)
        automation = kept.plan.outcome is Outcome.TRIGGER_AUTOMATION
        whose = f"{kept.person} {'confirmed' if kept.plan.asks else 'wished'} it in conversation {kept.conversation_id}"
        note = "; the model's reading was replayed from a file" if kept.recorded else ""
        return Verdict(
            State.DECIDED,
            shorten(f"{whose}: {kept.plan.what}{note}"),
            outcome=kept.plan.outcome,
            playbook_id=kept.plan.name if automation else "",
            template_id="" if automation else kept.plan.name,
            order=Order(
                target_ids=kept.plan.target_ids,
                goal=kept.plan.goal,
                token=self._minter.mint(kept.person, kept.conversation_id, kept.message_digest, said),
                conversation_id=str(kept.conversation_id),
            ),
            model_outcome=kept.model_outcome,
        )


def _body(kept: Kept) -> bytes:
    """Return the delivery of a wish, always the same bytes."""
    said = {
        "message_id": str(kept.confirmed_by),
        "conversation_id": str(kept.conversation_id),
        "message_digest": kept.message_digest.hex(),
        "person": kept.person,
        "title": kept.subject,
        "description": kept.plan.goal,
        "targets": list(kept.plan.target_ids),
        "time": (kept.confirm_time or datetime.now(UTC)).isoformat(),
    }
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def _kept(row: Any) -> Kept:
    """Return a row as a wish."""
    plan = Plan(
        outcome=Outcome(row["outcome"]),
        name=row["name"],
        version=row["version"],
        digest=row["digest"],
        target_ids=tuple(row["target_ids"]),
        goal=row["goal"],
        title=row["title"],
        changes=tuple(row["changes"]),
        tells=tuple(row["tells"]),
        environments=tuple(row["environments"]),
    )
    return Kept(
        wish_id=row["wish_id"],
        conversation_id=row["conversation_id"],
        person=row["person"],
        state=WishState(row["state"]),
        detail=row["detail"],
        plan=plan,
        model_outcome=row["model_outcome"],
        recorded=row["recorded"],
        confirmed_by=row["confirmed_by"],
        message_digest=row["message_digest"] or b"",
        confirm_time=row["confirm_time"],
        signal_id=row["signal_id"],
        incident_id=row["incident_id"],
        subject=row["subject"],
    )
