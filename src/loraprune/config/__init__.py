"""Every option with its default, its help and its checks. Imports no torch."""
