"""From a criterion to one score per unit: one module a kind of criterion."""
