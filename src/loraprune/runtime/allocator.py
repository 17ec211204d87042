"""How the C library gives out memory on a CPU: freed tensors stay with the process, so that the next step need not ask for new pages.

Only glibc has these calls; elsewhere nothing is changed.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of glibc's <malloc.h>"""
LARGEST = 2**30
"""bytes; larger tensors are given back as soon as they are freed"""


def keep_freed_memory() -> None:
    """Keep what tensors of up to `LARGEST` bytes occupied; call it before the first tensor, in a process that runs nothing else.

    glibc asks the system for every tensor above 32 MiB and gives it back afterwards, and each new page costs a fault and zeros. The
    logits of a step are hundreds of megabytes. docs/log.md has the time and memory of a step with and without it.
    """
    if mallopt := _call("mallopt"):
        mallopt(MMAP_THRESHOLD, LARGEST)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give what is kept back to the system, before a measurement of resident memory."""
    if malloc_trim := _call("malloc_trim"):
        malloc_trim(0)


def _call(name: str) -> Callable[..., Any] | None:
    """Return a function of the C library; None if it has none of that name, as musl and macOS."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
