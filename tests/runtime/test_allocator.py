"""Memory of freed tensors stays with the command's process, until it is given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import psutil, torch
from loraprune.runtime.allocator import keep_freed_memory, return_freed_memory
resident = lambda: psutil.Process().memory_info().rss
if {keep}:
    keep_freed_memory()
before, tensors = resident(), [torch.ones(2**24) for _ in range(3)]
del tensors
print(resident() - before)
return_freed_memory()
print(resident() - before)
"""
TENSORS = 3 * 2**26
"""bytes of the tensors"""


def left(*, keep: bool) -> list[int]:
    """Return the bytes that a new process still has after it freed tensors, and after it gave memory back."""
    command = [sys.executable, "-c", SCRIPT.format(keep=keep)]
    return [int(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    freed, returned = left(keep=True)
    assert freed > 0.9 * TENSORS
    assert returned < 0.1 * TENSORS
    assert left(keep=False)[0] < 0.1 * TENSORS  # the control
