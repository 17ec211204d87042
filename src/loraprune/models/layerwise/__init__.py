"""Models whose layers differ in width, or whose widths no stock configuration can state."""
