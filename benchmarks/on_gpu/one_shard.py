"""The command line of loraprune for FSDP2 in a single process, which it refuses as of no use: here it is a test of the device."""

from __future__ import annotations

import os
import sys

from loraprune import cli
from loraprune.runtime import launch

if __name__ == "__main__":
    os.environ[launch.RAM_EFFICIENT] = "false"
    launch.check_launch = lambda command: None  # type: ignore[assignment]
    sys.exit(cli.main(sys.argv[1:]))
