"""Print results as tables on stdout for people; `--json` is for programs."""
