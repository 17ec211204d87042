"""The commands as functions: each takes models and data as objects or names, and returns a typed result.

`arguments` turns keyword arguments into options, `objects` names objects in memory, `results` has the returned types.
"""
