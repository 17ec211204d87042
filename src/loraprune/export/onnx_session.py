"""Run exported graphs with onnxruntime: logits, and greedy decoding token by token with the cache.

Needs only onnxruntime and numpy; the same lines work without loraprune.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

PAIR = ("encoder_model.onnx", "decoder_model.onnx")
"""graphs of an encoder-decoder"""


class Session:
    """A graph of `loraprune export --format onnx` on a CPU."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Open the graph; `threads` are those of one operator, by default PyTorch's."""
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or torch.get_num_threads()
        settings.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        self.inputs = {each.name: each.shape for each in self.session.get_inputs()}
        self.cached = [name for name in self.inputs if name.startswith("past_key_values.") and ".encoder." not in name]

    def run(self, inputs: dict[str, Any]) -> list[Any]:
        """Return all outputs; inputs that the graph does not read are left out."""
        return self.session.run(None, {name: value for name, value in inputs.items() if name in self.inputs})

    def empty_cache(self, batch: int) -> list[Any]:
        """Return keys and values of no tokens."""
        shapes = [self.inputs[name] for name in self.cached]
        return [np.zeros((batch, shape[1], 0, shape[3]), np.float32) for shape in shapes]

    def step(self, tokens: Any, mask: Any, past: list[Any]) -> tuple[Any, list[Any]]:
        """Read new tokens (batch, new) beside a cache; `mask` (batch, all tokens) is 0 where a row is filled up on the left.

        Returns:
            Logits (batch, new, vocabulary), and the cache with the new tokens.
        """
        places = np.maximum(np.cumsum(mask, 1) - 1, 0)[:, -tokens.shape[1] :]
        named = dict(zip(self.cached, past, strict=True))
        logits, *present = self.run({"input_ids": tokens, "attention_mask": mask, "position_ids": places, **named})
        return logits, present

    def generate(self, prompt: Any, *, new_tokens: int) -> Any:
        """Return the greedy continuation (batch, new tokens) of prompts (batch, tokens) of equal length."""
        mask, past, tokens, found = np.ones_like(prompt), self.empty_cache(len(prompt)), prompt, []
        for _ in range(new_tokens):
            logits, past = self.step(tokens, mask, past)
            tokens = logits[:, -1:].argmax(-1)
            mask = np.concatenate([mask, np.ones_like(tokens)], 1)
            found.append(tokens)
        return np.concatenate(found, 1)


class PairSession:
    """The two graphs of an encoder-decoder, of `loraprune export --format onnx` too."""

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        """Open `encoder_model.onnx` and `decoder_model.onnx`; `threads` as of `Session`."""
        self.encoder, self.decoder = (Session(folder / name, threads=threads) for name in PAIR)
        self.read = [name for name in self.decoder.inputs if ".encoder." in name]

    def encode(self, tokens: Any, mask: Any) -> list[Any]:
        """Return what the decoder reads of sources (batch, tokens); `mask` is 0 where a row is filled up."""
        return self.encoder.run({"input_ids": tokens, "attention_mask": mask})

    def step(self, tokens: Any, mask: Any, source: list[Any], past: list[Any]) -> tuple[Any, list[Any]]:
        """Read new tokens of the target (batch, new) beside a cache; `mask` and `source` are of the source.

        Returns:
            Logits (batch, new, vocabulary), and the cache with the new tokens.
        """
        named = dict(zip([*self.decoder.cached, *self.read], [*past, *source], strict=True))
        logits, *present = self.decoder.run({"input_ids": tokens, "encoder_attention_mask": mask, **named})
        return logits, present

    def generate(self, tokens: Any, mask: Any, *, start: int, new_tokens: int) -> Any:
        """Return the greedy targets (batch, new tokens) of sources; `start` is `decoder_start_token_id` of config.json."""
        source, past, found = self.encode(tokens, mask), self.decoder.empty_cache(len(tokens)), []
        new = np.full_like(tokens[:, :1], start)
        for _ in range(new_tokens):
            logits, past = self.step(new, mask, source, past)
            new = logits[:, -1:].argmax(-1)
            found.append(new)
        return np.concatenate(found, 1)
