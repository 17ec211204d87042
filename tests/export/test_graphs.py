"""Graphs of onnxruntime and torch.export compute what the model does, token by token too."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from loraprune.errors import UnsupportedModelError, VerificationError
from loraprune.export import torch_export
from loraprune.export.graphs import trace_logits
from loraprune.export.onnx_session import Session
from loraprune.models.loading import from_pretrained
from loraprune.models.opening import load_tokenizer
from tests.export.cases import exported
from tests.tiny import EVERY, tiny_model

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra export is not installed")


def check_onnx(source: Path, output: Path) -> None:
    """Export a causal model, and decode greedily with onnxruntime and with transformers."""
    values = exported(source, output, "onnx")
    assert values["verification"]["source_vs_exported"] < 1e-5
    session, tokenizer = Session(output / "model.onnx"), load_tokenizer(str(output))
    prompts = torch.tensor([tokenizer(text)["input_ids"] for text in ("a dog ran", "the big r")])
    expected = from_pretrained(source).generate(  # type: ignore[operator]
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        min_new_tokens=12,
        max_new_tokens=12,
        pad_token_id=2,
    )
    found = session.generate(prompts.numpy(), new_tokens=12)
    assert found.tolist() == expected[:, prompts.shape[1] :].tolist()
    past = session.empty_cache(2)
    _, past = session.step(prompts.numpy(), np.ones_like(prompts.numpy()), past)
    assert {each.shape[2] for each in past} == {prompts.shape[1]}
    assert [each.shape[1] for each in past[::2]] == [layer.k_proj.out_features // 8 for layer in attentions(source)]


def attentions(source: Path) -> list[torch.nn.Module]:
    return [layer.self_attn for layer in from_pretrained(source).model.layers]  # type: ignore[union-attr]


@needs_onnx
def test_onnxruntime_decodes_a_layerwise_model_with_its_cache(layerwise: Path, tmp_path: Path) -> None:
    check_onnx(layerwise, tmp_path / "out")


@needs_onnx
@pytest.mark.slow
def test_onnxruntime_decodes_a_uniform_model_with_its_cache(uniform: Path, tmp_path: Path) -> None:
    check_onnx(uniform, tmp_path / "out")


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["bert", "vit", "gemma2", "mistral"])
def test_onnx_of_other_kinds_of_models(variant: str, tmp_path: Path) -> None:
    """Sliding windows shorter than the text, and images."""
    tiny_model(variant).save_pretrained(tmp_path / "source")
    assert exported(tmp_path / "source", tmp_path / "out", "onnx")["verification"]["source_vs_exported"] < 1e-5


@needs_onnx
def test_what_onnx_cannot_hold_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def translate(*_: object, **__: object) -> None:
        raise ValueError("no operator\nfor this")

    monkeypatch.setattr(torch.onnx, "export", translate)
    tiny_model("bert").save_pretrained(tmp_path / "source")
    with pytest.raises(UnsupportedModelError, match=r"'bert' cannot be written .*no operator for this.*--format torch"):
        exported(tmp_path / "source", tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", ["bert", "vit"])
def test_torch_export_of_other_kinds_of_models(variant: str, tmp_path: Path) -> None:
    tiny_model(variant).save_pretrained(tmp_path / "source")
    values = exported(tmp_path / "source", tmp_path / "out", "torch")
    assert values["verification"]["source_vs_exported"] < 1e-5
    assert set(values["inputs"]) == {
        name for name, one in EVERY[variant].inputs().items() if isinstance(one, torch.Tensor)
    }


def test_torch_export_takes_any_batch_and_length(layerwise: Path, tmp_path: Path) -> None:
    exported(layerwise, tmp_path / "out", "torch")
    module, model = torch.export.load(tmp_path / "out" / "model.pt2").module(), from_pretrained(layerwise)
    for shape in ((2, 2), (5, 31)):
        ids = torch.randint(3, 200, shape)
        with torch.no_grad():
            torch.testing.assert_close(module({"input_ids": ids}), model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_a_graph_of_another_model_is_seen(uniform: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(model: torch.nn.Module) -> object:
        other = tiny_model("llama", seed=1)
        other.resize_token_embeddings(264, mean_resizing=False)
        return trace_logits(other)

    monkeypatch.setattr(torch_export, "trace_logits", careless)
    with pytest.raises(VerificationError, match=r"model and \.pt2 file"):
        exported(uniform, tmp_path / "out", "torch")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_traced_is_told_in_words() -> None:
    model = tiny_model("llama")
    model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(UnsupportedModelError, match=r"'llama' cannot be traced by torch.export .*ZeroDivisionError"):
        trace_logits(model)
