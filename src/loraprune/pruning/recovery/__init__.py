"""What repairs the kept weights after a removal without training the whole model."""
