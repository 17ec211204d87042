"""A run's folder as one page that opens offline."""
