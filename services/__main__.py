"""`python -m services <name>`: starts one service of the mesh. The only file that imports them all."""

import asyncio
import importlib
import sys
from typing import Final

from services.mesh import telemetry
from services.mesh.errors import BootError
from services.mesh.settings import MeshSettings, load

NAMES: Final = ("bridge", "ingest", "router", "agents", "automation", "guardrails", "gateway", "audit")
# sysexits.h: a configuration error; starting again without a change does not help.
EX_USAGE: Final = 64
EX_CONFIG: Final = 78


def main(arguments: list[str]) -> int:
    """Start the named service and return its exit code."""
    if len(arguments) != 1 or arguments[0] not in NAMES:
        sys.stderr.write(f"usage: python -m services {{{'|'.join(NAMES)}}}\n")
        return EX_USAGE
    name = arguments[0]
    try:
        settings = load(MeshSettings)
        telemetry.setup(name, settings.log_level, settings.otlp_endpoint)
        result = importlib.import_module(f"services.{name}.main").run()
        if asyncio.iscoroutine(result):
            asyncio.run(result)
    except BootError as error:
        sys.stderr.write(f"{name} cannot start:\n{error}\n")
        return EX_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
