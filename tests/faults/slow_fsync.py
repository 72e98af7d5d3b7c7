"""Become another program whose fsync and fdatasync do not return while a file exists: `slow_fsync.py FILE PROGRAM ...`.

The kernel hands these two system calls to a child of ours (seccomp user notification, Linux 5.5 or newer, no root
needed), which lets them go on at once, or, while FILE exists, as soon as it is gone. Nothing else of the program is
slower. What that is: a disk that takes its time. What it is not: a disk that lies or loses power. Each call that had to
wait is a line in FILE.seen. Standard library only: it runs between a supervisor and a store.
"""

import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

# Numbers of seccomp, fsync and fdatasync.
CALLS = {"x86_64": (317, 74, 75), "aarch64": (277, 82, 83)}
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
FILTER_MODE, NEW_LISTENER = 1, 8
LOAD_NUMBER, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NOTIFY, ALLOW = 0x7FC00000, 0x7FFF0000
RECEIVE, SEND = 0xC0502100, 0xC0182101
NOTIFICATION_BYTES = 80
GO_ON = 1
LOOK_MILLISECONDS = 10


class Instruction(ctypes.Structure):
    """One instruction of a filter."""

    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jump_true", ctypes.c_ubyte),
        ("jump_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint32),
    )


class Filter(ctypes.Structure):
    """A filter as the kernel takes it."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction)))


def supported() -> bool:
    """Say whether this kernel and processor can do it."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    return platform.machine() in CALLS and actions.exists() and "user_notif" in actions.read_text().split()


def listen() -> int:
    """Install the filter in this process, for good, and return the descriptor that hears of its calls."""
    seccomp, fsync, fdatasync = CALLS[platform.machine()]
    kernel = ctypes.CDLL(None, use_errno=True)
    instructions = (Instruction * 5)(
        Instruction(LOAD_NUMBER, 0, 0, 0),
        Instruction(JUMP_IF_EQUAL, 1, 0, fsync),
        Instruction(JUMP_IF_EQUAL, 0, 1, fdatasync),
        Instruction(RETURN, 0, 0, NOTIFY),
        Instruction(RETURN, 0, 0, ALLOW),
    )
    program = Filter(len(instructions), instructions)
    kernel.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    descriptor: int = kernel.syscall(seccomp, FILTER_MODE, NEW_LISTENER, ctypes.byref(program))
    if descriptor < 0:
        sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
    return descriptor


def serve(descriptor: int, stalled: Path) -> None:
    """Let every call go on, those that come while STALLED exists not before it is gone; until our parent ends."""
    seen = stalled.with_name(f"{stalled.name}.seen")
    while True:
        notification = bytearray(NOTIFICATION_BYTES)
        try:
            fcntl.ioctl(descriptor, RECEIVE, notification, True)
        except OSError:
            continue  # whoever called was killed meanwhile
        (call,) = struct.unpack_from("Q", notification)
        if stalled.exists():
            with seen.open("a") as file:
                file.write(f"{time.time()}\n")
            while stalled.exists():
                select.poll().poll(LOOK_MILLISECONDS)
        try:
            fcntl.ioctl(descriptor, SEND, struct.pack("QqiI", call, 0, 0, GO_ON))
        except OSError:
            continue  # the same


def main(stalled: Path, command: list[str]) -> None:
    """Start the child that serves, then become the command."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    if os.fork() == 0:
        # before the filter is there, so that it is not under it; a polite stop is for the program alone
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL.value)
        _, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
        serve(descriptors[0], stalled)
    socket.send_fds(ours, [b"."], [listen()])
    os.execv(command[0], command)  # noqa: S606  the whole point is no shell


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
