"""Load and save models; adapters, quantised layers, modelling code for unequal layers."""
