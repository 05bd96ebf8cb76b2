"""Is the process that a training run was started in still there?"""

from __future__ import annotations

import os
import socket
from pathlib import Path

_STATE, _START_TIME = 0, 19
"""Places in /proc/PID/stat behind the name of the command (proc(5), fields 3 and 22)."""


def this_host() -> str:
    """Name of this machine or container."""
    return socket.gethostname()


def process_identity(pid: int) -> str:
    """What tells a process from a later one with the same number; "" where the system does not say.

    Linux: boot and start time. A process that has ended but was not waited for has no identity.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[_STATE] in "ZX" else f"{boot}:{fields[_START_TIME]}"


def is_alive(pid: int, identity: str) -> bool:
    """Whether the process ``pid`` of this host, whose `process_identity` was ``identity``, still runs."""
    if identity:
        return process_identity(pid) == identity
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
