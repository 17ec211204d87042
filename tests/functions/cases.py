"""A short run as keyword arguments, as a command line has it too."""

from __future__ import annotations

from typing import Any

from tests.published import by_the_paper

SHORT: dict[str, Any] = by_the_paper(
    steps=4, batch=4, length=32, lr=1e-3, rank=4, device="cpu", html=False, ratio=0.5, interval=1, max_shard_size="5GB"
)
EXCHANGES = [{"instruction": f"say {number}", "response": f"number {number}"} for number in range(40)]
