"""Recovery of the kept weights after a removal, without training the whole model."""
