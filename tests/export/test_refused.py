"""One clear line for a model or an option that a format cannot take, before any weight is read and with nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraprune.export import base
from loraprune.export import run as module
from tests.cli.cases import refused
from tests.export.cases import save_pruned_tiny
from tests.tiny import tiny_model


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(module, "load_model", load)


@pytest.mark.parametrize(
    ("variant", "name", "words"),
    [
        ("bert", "gguf", ["'bert' is for masked-lm", "onnx and torch hold it"]),
        ("vit", "gguf", ["'vit' is for image-classification"]),
        ("vit", "safetensors", ["'vit' is for image-classification"]),
        ("gemma2", "gguf", ["'gemma2' are not written", "llama, mistral", "convert_hf_to_gguf.py"]),
        ("llama", "gguf", ["has no tokenizer"]),
    ],
)
def test_a_model_of_the_wrong_kind(
    variant: str, name: str, words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_model(variant).save_pretrained(tmp_path / "model")
    refused(["export", "--model", str(tmp_path / "model"), "--format", name, "--output", str(tmp_path / "out")], capfd, *words,
            root=tmp_path)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "gguf", "--quantization", "q4_k_m"], ["llama-quantize model-f16.gguf small.gguf Q4_K_M"]),
        (["--format", "gguf", "--quantization", "q8"], ["did you mean 'q8_0'", "f16, f32, bf16"]),
        (["--format", "onnx", "--quantization", "int8"], ["onnx has it for encoders", "--format gguf"]),
        (["--format", "torchao", "--quantization", "int4"], ["kernels of a GPU", "q4_0"]),
        (["--format", "safetensors", "--tensor-parallel", "3"], ["layer 0 has num_attention_heads 4", "3"]),
        (["--format", "safetensors", "--tensor-parallel", "0"], ["--tensor-parallel 0: at least 1"]),
        (["--format", "gguv"], ["did you mean 'gguf'"]),
    ],
)
def test_a_wrong_option(
    arguments: list[str], words: list[str], uniform: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--model", str(uniform), "--output", str(tmp_path / "out"), *arguments]
    refused(command, capfd, *words, root=tmp_path)


def test_layers_of_their_own_widths_where_llama_cpp_has_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = save_pruned_tiny(tmp_path / "model", "qwen3", layerwise=True)
    words = ["no 'qwen3' whose layers differ", "llama, mistral, qwen2", "--format padded"]
    refused(["export", "--model", str(source), "--format", "gguf", "--output", str(tmp_path / "out")], capfd, *words,
            root=tmp_path)  # fmt: skip


@pytest.mark.parametrize("name", ["gguf", "onnx", "torchao"])
def test_a_missing_library_names_the_extra(
    name: str, uniform: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda _: None)
    refused(["export", "--model", str(uniform), "--format", name, "--output", str(tmp_path / "out")], capfd,
            f"--format {name} needs", "pip install 'loraprune[export]'", root=tmp_path)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--formats", "onx"], ["--formats onx", "did you mean 'onnx'"]),
        (["--formats", "onnx", "--device", "cuda"], ["--device cuda: formats are timed on a CPU"]),
        (["--unmerged", "0"], ["--unmerged 0: at least 1"]),
    ],
)
def test_benchmark(arguments: list[str], words: list[str], uniform: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(["benchmark", "--model", str(uniform), *arguments], capfd, *words)


@pytest.mark.parametrize("variant", ["bert", "t5"])
def test_a_model_that_no_engine_times(variant: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny_model(variant).save_pretrained(tmp_path / "model")
    refused(
        ["benchmark", "--model", str(tmp_path / "model"), "--formats", "onnx"],
        capfd,
        "--formats onnx",
        f"this {variant!r} is for",
    )
