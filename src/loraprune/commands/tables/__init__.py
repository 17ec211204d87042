"""Results as tables on stdout, for people; `--json` is for machines. Knows nothing about how anything was measured."""
