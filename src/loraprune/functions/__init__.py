"""The commands as functions: each takes models and data as objects or names, and returns a typed result.

`arguments` makes options of keyword arguments, `objects` gives names to what is in memory, `results` has what is returned.
"""
