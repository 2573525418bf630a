"""What may a worker not ask of the system? To start programs; and once its model is loaded, sockets.

A seccomp filter for all threads of this process (Linux on x86-64 and aarch64; elsewhere there is none,
and that is told). A list of what is denied is no sandbox: files stay open to the process's user.
"""

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterable

PROGRAMS = ("execve", "execveat", "fork", "vfork", "ptrace", "io_uring_setup")
SOCKETS = ("socket", "socketpair", "connect", "bind", "listen")
# Of each machine: how the kernel names it, then numbers of calls; what it lacks has none.
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {"execve": 59, "execveat": 322, "fork": 57, "vfork": 58, "ptrace": 101, "io_uring_setup": 425,
         "socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "listen": 50, "seccomp": 317},
    ),
    "aarch64": (
        0xC00000B7,
        {"execve": 221, "execveat": 281, "ptrace": 117, "io_uring_setup": 425,
         "socket": 198, "socketpair": 199, "connect": 203, "bind": 200, "listen": 201, "seccomp": 277},
    ),
}  # fmt: skip
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | errno.EPERM
_STEP_BYTES = 8
_AT_NUMBER, _AT_MACHINE = 0, 4
# Numbers from here on are calls in a second numbering (x32), which would pass by the list.
_OTHER_NUMBERING = 0x40000000
_SET_MODE_FILTER, _ALL_THREADS = 1, 1


def deny(calls: Iterable[str]) -> bool:
    """Let these calls fail with EPERM from now on, in every thread; False where that cannot be.

    The process must have given up gaining privileges (PR_SET_NO_NEW_PRIVS).
    """
    if sys.platform != "linux" or os.uname().machine not in _MACHINES:
        return False
    machine, numbers = _MACHINES[os.uname().machine]
    code = _program(machine, [numbers[call] for call in calls if call in numbers])
    kept = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(code) // _STEP_BYTES, ctypes.addressof(kept))
    made = ctypes.CDLL(None).syscall(numbers["seccomp"], _SET_MODE_FILTER, _ALL_THREADS, program)
    return bool(made == 0)


def _program(machine: int, denied: list[int]) -> bytes:
    """Return a classic BPF program: each step is code, jump if true, jump if false, operand."""
    steps = [
        (_LOAD, 0, 0, _AT_MACHINE),
        (_JUMP_EQUAL, 0, len(denied) + 3, machine),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_JUMP_GREATER_EQUAL, len(denied) + 1, 0, _OTHER_NUMBERING),
        *((_JUMP_EQUAL, len(denied) - at, 0, number) for at, number in enumerate(denied)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
