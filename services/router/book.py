"""The rule set that decides now, compiled; follows what any replica publishes."""

import asyncio
from typing import Final

import structlog

from opsmesh.config.v1 import rules_pb2
from services.mesh.loop import every
from services.router.messages import rules_of
from services.router.rule_store import RuleStore
from services.router.rules import Index

PERIOD: Final = 0.4
log = structlog.get_logger("opsmesh.router")


class RuleBook:
    """Holds the active version's index; the swap is one assignment, so a decision sees one version whole."""

    def __init__(self, store: RuleStore) -> None:
        self._store = store
        self._lock = asyncio.Lock()
        self.index = Index()

    async def refresh(self) -> None:
        """Load the active version if it is another one; the old one goes on deciding meanwhile."""
        async with self._lock:
            if await self._store.active_version() == self.index.version:
                return
            row = await self._store.read(0)
            if row is None or row.content is None:
                return
            # In a thread: compiling many patterns takes longer than a decision may wait.
            self.index = await asyncio.to_thread(_compile, row.content, row.version)
            log.info("rule set active", version=row.version, rules=row.rule_count)

    async def follow(self, stop: asyncio.Event) -> None:
        """Notice versions that other replicas published, within a second."""
        await every(stop, PERIOD, self.refresh)


def _compile(content: bytes, version: int) -> Index:
    return Index(rules_of(rules_pb2.RuleSet.FromString(content)), version)
