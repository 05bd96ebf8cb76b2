"""Memory of freed tensors: kept by the process when asked to, and given back when asked to."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import psutil, torch
from hermes.device import keep_freed_memory, return_freed_memory
MIB = 2**20
resident = lambda: psutil.Process().memory_info().rss / MIB
keep = {keep}
if keep:
    keep_freed_memory()
before = resident()
large = torch.ones(256 * MIB // 4)
small = torch.ones(8)  # above the large one in the heap
del large
freed = resident() - before
return_freed_memory()
print(freed, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_is_kept_until_it_is_given_back(keep: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True
    )
    freed, returned = (float(number) for number in done.stdout.split())
    assert (freed > 200) == keep
    assert returned < 100
