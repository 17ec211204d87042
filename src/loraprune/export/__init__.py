"""Export formats, one file each; importing this package registers them.

A format is a function that writes and verifies, and a line `formats.add(name, Format(...))` below it.
"""

from loraprune.export import gguf, onnx, padded, serving, torch_export, torchao
from loraprune.export.base import Format, Source, formats

__all__ = ["Format", "Source", "formats", "gguf", "onnx", "padded", "serving", "torch_export", "torchao"]
