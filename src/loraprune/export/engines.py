"""Run exported formats beside their source model, for `loraprune benchmark --formats`.

Knows nothing about clocks.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from loraprune.config.export import ExportConfig
from loraprune.evaluation.benchmark import Engine
from loraprune.evaluation.timing import Call
from loraprune.export.gguf.llamacpp import PACKAGE, LlamaCpp
from loraprune.export.onnx_session import Session
from loraprune.export.run import check_export, write_format


class OnnxEngine:
    """onnxruntime, which returns all logits, as transformers does."""

    largest_batch: int | None = None

    def __init__(self, model: str, folder: Path) -> None:
        self.name, self.model = f"onnxruntime {version('onnxruntime')}", model
        self.file_bytes = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
        self.session = Session(folder / "model.onnx")

    def prefill(self, tokens: Int[Tensor, "batch seq"]) -> Call:
        """Return the call that reads tokens."""
        ids = tokens.cpu().numpy()
        mask, past = ids * 0 + 1, self.session.empty_cache(len(ids))
        return lambda: self.session.step(ids, mask, past)

    def decode(self, prompt: Int[Tensor, "batch seq"], *, new_tokens: int) -> Call:
        """Return the call that reads a prompt and writes so many tokens, greedily."""
        ids = prompt.cpu().numpy()
        return lambda: self.session.generate(ids, new_tokens=new_tokens)


class LlamaCppEngine:
    """llama.cpp, one prompt at a time."""

    largest_batch: int | None = 1

    def __init__(self, model: str, folder: Path, *, context: int) -> None:
        (file,) = folder.glob("*.gguf")
        self.name, self.model, self.file_bytes = f"llama.cpp ({PACKAGE} {version(PACKAGE)})", model, file.stat().st_size
        self.runner = LlamaCpp(file, context=context)

    def prefill(self, tokens: Int[Tensor, "batch seq"]) -> Call:
        """Return the call that reads tokens."""
        ids = tokens[0].tolist()
        return lambda: self.runner.logits(ids)

    def decode(self, prompt: Int[Tensor, "batch seq"], *, new_tokens: int) -> Call:
        """Return the call that reads a prompt and writes so many tokens, greedily."""
        ids = prompt[0].tolist()
        return lambda: self.runner.generate(ids, new_tokens=new_tokens)


def make_engine(options: ExportConfig, folder: Path, *, context: int) -> Engine:
    """Write a format into an empty folder, verify it, and return what runs it."""
    entry, quantization, config = check_export(options)
    write_format(options, entry, quantization, config, folder)
    if options.format == "onnx":
        return OnnxEngine(options.model, folder)
    return LlamaCppEngine(options.model, folder, context=context)
