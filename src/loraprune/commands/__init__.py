"""The commands, one module each, and the parser of their command lines."""
