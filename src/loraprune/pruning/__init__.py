"""Which units to remove, when, and how: target, schedule, allocation, masks, slices, verification."""
