"""Waiting without looking, so that what is measured is not disturbed."""

import asyncio

from services.mesh.loop import wait


async def settle(seconds: float) -> None:
    """Let the machine be for some seconds."""
    await wait(asyncio.Event(), seconds)
