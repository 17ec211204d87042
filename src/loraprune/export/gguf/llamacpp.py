"""Run a GGUF file with llama.cpp, if llama-cpp-python is installed.

Knows nothing about how the file was written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loraprune.errors import VerificationError

PACKAGE = "llama-cpp-python"
FLOAT32 = 0
"""`GGML_TYPE_F32` of llama.cpp: the precision of the cache"""
TRIAL = """
import json, sys, llama_cpp
settings = json.loads(sys.argv[1])
llama_cpp.Llama(**settings).eval([1] * settings["n_ctx"])
"""
"""a program that fills the context with llama.cpp"""


def llamacpp_version() -> str | None:
    """Return the version of llama-cpp-python, or None where it is not installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def settings_of(file: Path, *, context: int, threads: int | None = None) -> dict[str, Any]:
    """Return the arguments of `llama_cpp.Llama` with which a file is run."""
    count = threads or torch.get_num_threads()
    return {
        "model_path": str(file), "n_ctx": context, "n_batch": context, "n_ubatch": context, "logits_all": True, "verbose": False,
        "n_threads": count, "n_threads_batch": count, "n_gpu_layers": 0, "type_k": FLOAT32, "type_v": FLOAT32,
    }  # fmt: skip


def check_runs(file: Path, *, context: int) -> None:
    """Run a file in a separate process, as a crash of llama.cpp would end this one without a word.

    Raises:
        VerificationError: if it crashes. Errors that llama.cpp reports are left to `LlamaCpp`.
    """
    given = json.dumps(settings_of(file, context=context))
    done = subprocess.run([sys.executable, "-c", TRIAL, given], capture_output=True, check=False)
    if done.returncode < 0:
        raise VerificationError(
            f"llama.cpp ({PACKAGE} {llamacpp_version()}) crashed with signal {-done.returncode} when it ran {file.name}; nothing was "
            "saved. All tensors were read back right, so try --quantization f16, build that package for another instruction set, or "
            "uninstall it to export without running the file"
        )


class LlamaCpp:
    """A GGUF file in llama.cpp on a CPU, with a cache in float32."""

    def __init__(self, file: Path, *, context: int, threads: int | None = None) -> None:
        """Load a file for texts of at most `context` tokens.

        Raises:
            VerificationError: if llama.cpp does not load it.
        """
        import llama_cpp

        try:
            self.model = llama_cpp.Llama(**settings_of(file, context=context, threads=threads))
        except (ValueError, RuntimeError, AssertionError) as error:
            raise VerificationError(f"llama.cpp does not load {file.name}: {error}; nothing was saved") from None

    def logits(self, tokens: Sequence[int]) -> Any:
        """Return the logits (tokens, vocabulary) of one text."""
        self.model.reset()
        self.model.eval(list(tokens))
        return np.array(self.model.scores[: len(tokens)])

    def generate(self, prompt: Sequence[int], *, new_tokens: int) -> list[int]:
        """Return the greedy continuation, token by token with the cache."""
        self.model.reset()
        tokens, found = list(prompt), []
        for _ in range(new_tokens):
            self.model.eval(tokens)
            tokens = [int(self.model.scores[self.model.n_tokens - 1].argmax())]
            found += tokens
        return found

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text, special ones where the file says so."""
        return list(self.model.tokenize(text.encode("utf-8"), add_bos=True, special=True))
