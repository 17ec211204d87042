"""Models in and out: loading, saving, adapters, quantised layers, modelling code for unequal layers."""
