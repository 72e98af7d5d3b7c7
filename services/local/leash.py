"""Become another program that dies with its parent: `python -I -S leash.py SPEC.json`.

Standard library only and no imports of ours: it runs before every child of the local mesh and must cost milliseconds.
The parent gives it a pipe or /dev/null as standard input. SPEC holds argv, env (the whole environment: nothing is
inherited), cwd, user (or null) and death_signal.
"""

import ctypes
import json
import os
import select
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def drop_to(user: str) -> None:
    """Give up root for USER, groups included; a no-op when already that user."""
    import pwd  # noqa: PLC0415 - costs time that only one of the children needs to pay

    entry = pwd.getpwnam(user)
    if os.geteuid() == entry.pw_uid:
        return
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def die_with_parent(name: str) -> None:
    """Ask the kernel for signal NAME when the parent dies; elsewhere than Linux the supervisor alone cleans up."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.Signals[name].value)
    # a parent that died before the kernel knew of our wish left its end of our standard input closed
    standard_input = select.poll()
    standard_input.register(0, 0)
    if any(event & select.POLLHUP for _, event in standard_input.poll(0)):
        sys.exit(1)


def main(spec: Path) -> None:
    """Read SPEC and become its program; on failure the exec error is the exit message."""
    wanted = json.loads(spec.read_text())
    os.chdir(wanted["cwd"])
    if wanted["user"]:
        drop_to(wanted["user"])
    die_with_parent(wanted["death_signal"])  # after the change of user, which clears it
    os.execve(wanted["argv"][0], wanted["argv"], wanted["env"])  # noqa: S606 - the whole point is no shell


if __name__ == "__main__":
    main(Path(sys.argv[1]))
