"""`python -m loraprune` and the `loraprune` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    from loraprune.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    from loraprune.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
