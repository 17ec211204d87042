"""GGUF, llama.cpp's format; importing this package registers it."""

from loraprune.export.gguf.write import write

__all__ = ["write"]
