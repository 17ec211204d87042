"""A mask on the merged weight: the same forward pass and gradients as the merged model, and one matrix at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from loraprune.families import find_groups
from loraprune.models.adapters import (
    base_layer,
    cuts,
    factors,
    find_module,
    linear_paths,
    merge_lora,
    projection,
    zero_weights_,
)
from loraprune.models.compat import enable_checkpointing
from loraprune.pruning.sparsity.masks import MaskedProduct, mask_weight
from tests.tiny import logits, relative, tiny_config, tiny_model, tokens, with_lora

ROWS, RANK, IN, OUT = 5, 2, 8, 6


def tensors(*, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, A, B in float64 that need gradients, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, ROWS, IN), (RANK, IN), (OUT, RANK))
    x, a, b = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    return x, a, b, torch.rand((OUT, IN), generator=generator) < 0.5


def random_masks(model: torch.nn.Module, variant: str, *, seed: int = 0) -> dict[str, Tensor]:
    """Return a mask that keeps half of the weights of every prunable projection."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {path: projection(model, path).shape for path in linear_paths(find_groups(tiny_config(variant)))}
    return {path: torch.rand(shape, generator=generator) < 0.5 for path, shape in shapes.items()}


def masked(variant: str = "llama", *, dropout: float = 0.0) -> tuple[PeftModel, dict[str, Tensor]]:
    """Return a tiny model whose LoRA matters, with half of its weights masked."""
    model = with_lora(tiny_model(variant), dropout=dropout)
    kept = random_masks(model, variant)
    for path, mask in kept.items():
        mask_weight(model, path, mask)
    return model, kept


# Gradients


def test_gradients_are_those_of_finite_differences_in_float64() -> None:
    x, a, b, kept = tensors()
    assert torch.autograd.gradcheck(lambda *inputs: MaskedProduct.apply(*inputs, kept), (x, a, b))


@pytest.mark.parametrize("rows", [(ROWS, IN), (2, ROWS, IN)])
def test_gradients_are_those_of_autograd_on_the_plain_product(rows: tuple[int, ...]) -> None:
    x, a, b, kept = tensors()
    x = x.flatten(0, 1)[: ROWS * len(rows[:-1])].reshape(rows).detach().requires_grad_()
    outputs = MaskedProduct.apply(x, a, b, kept), x @ (kept * (b @ a)).T
    torch.testing.assert_close(*outputs)
    weights = torch.randn(outputs[0].shape, dtype=torch.float64)
    found, expected = (torch.autograd.grad((out * weights).sum(), (x, a, b)) for out in outputs)
    torch.testing.assert_close(found, expected)
    unmasked = torch.autograd.grad((x @ (b @ a).T * weights).sum(), (a, b))
    assert not torch.allclose(unmasked[0], expected[1])


def test_an_adapted_layer_has_the_gradients_of_the_masked_merged_weight() -> None:
    model, kept = masked()
    path = "model.layers.0.mlp.down_proj"
    module, proj = find_module(model, path), projection(model, path)
    x = torch.randn(3, proj.shape[1], requires_grad=True)
    merged = kept[path] * (proj.base_rows(0, proj.shape[0]) + proj.scaling * proj.lora_b @ proj.lora_a)
    outputs = module(x), x @ merged.T
    torch.testing.assert_close(*outputs)
    found, expected = (torch.autograd.grad(out.square().sum(), (x, proj.lora_a, proj.lora_b)) for out in outputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_no_matrix_of_the_size_of_a_weight_is_kept_for_the_backward_pass() -> None:
    x, a, b, kept = tensors()
    shapes: list[tuple[torch.Size, torch.dtype]] = []

    def pack(tensor: Tensor) -> Tensor:
        shapes.append((tensor.shape, tensor.dtype))
        return tensor

    def dense() -> list[torch.dtype]:
        return [dtype for shape, dtype in shapes if shape.numel() == OUT * IN and dtype != torch.bool]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        MaskedProduct.apply(x, a, b, kept)
        assert shapes
        assert dense() == []
        _ = x @ (kept * (b @ a)).T  # what autograd alone would keep
        assert dense() == [torch.float64]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_stays_that_of_peft_and_checkpointing_repeats_it(checkpointing: bool) -> None:
    model, _ = masked(dropout=0.5)
    if checkpointing:
        enable_checkpointing(model)
    ids = tokens()
    found = []
    for train in (True, True, False):
        torch.manual_seed(1)
        model.train(train)
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found.append(next(p.grad for name, p in model.named_parameters() if "lora_A" in name))
    assert found[0] is not None
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=1e-2)
    if checkpointing:
        plain, _ = masked(dropout=0.5)
        torch.manual_seed(1)
        plain.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        grad = next(p.grad for name, p in plain.named_parameters() if "lora_A" in name)
        torch.testing.assert_close(found[0], grad)


def test_training_under_autocast_reaches_the_factors() -> None:
    model, _ = masked()
    ids = tokens()
    grads = []
    for enabled in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.98


# The merged model


@pytest.mark.parametrize("variant", ["llama", "llama-attention_bias", "qwen2", "phi3", "olmo2"])
def test_masked_training_and_merged_reloaded_model_agree(variant: str, tmp_path: Path) -> None:
    model, kept = masked(variant, dropout=0.3)
    before = logits(model, tokens())
    merged = merge_lora(model)
    merged.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert relative(before, logits(reloaded, tokens())) < 2e-5
    for path, mask in kept.items():
        weight = next(cuts(find_module(reloaded, path), "out")).tensor
        assert torch.equal(weight != 0, mask)
        assert not torch.signbit(weight[~mask]).any()
    assert [name for name, _ in merged.named_buffers() if "kept" in name] == []


@pytest.mark.parametrize("variant", ["llama", "phi3"])
def test_a_mask_on_the_frozen_weight_alone_loses_something_when_merged(variant: str) -> None:
    """The control: what the test above compares can differ."""
    model = with_lora(tiny_model(variant))
    kept = random_masks(model, variant)
    for path, mask in kept.items():
        zero_weights_(base_layer(find_module(model, path)), mask)
    before = logits(model, tokens())
    merged = merge_lora(model)
    assert relative(before, logits(merged, tokens())) < 2e-5  # merging itself is right, but there are no zeros
    for path, mask in kept.items():
        assert (base_layer(find_module(merged, path)).weight[~mask] != 0).any()  # type: ignore[index]
        zero_weights_(base_layer(find_module(merged, path)), mask)
    assert relative(before, logits(merged, tokens())) > 1e-2


def test_a_later_mask_replaces_the_earlier_one() -> None:
    model, kept = masked()
    path = "model.layers.1.mlp.up_proj"
    tighter = kept[path] & random_masks(model, "llama", seed=1)[path]
    mask_weight(model, path, tighter)
    before = logits(model, tokens())
    merged = merge_lora(model)
    assert torch.equal(find_module(merged, path).weight != 0, tighter)  # type: ignore[arg-type]
    assert relative(before, logits(merged, tokens())) < 2e-5


def test_weights_stored_as_in_by_out_are_masked_alike() -> None:
    path = "transformer.h.0.mlp.c_fc"  # GPT-2's Conv1D
    small = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    adapters = LoraConfig(r=2, target_modules=[path], fan_in_fan_out=True, init_lora_weights=False)
    model = get_peft_model(small, adapters).eval()
    assert isinstance(model, PeftModel)
    kept = torch.rand(64, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    mask_weight(model, path, kept)
    before = logits(model, tokens())
    merged = merge_lora(model)
    assert torch.equal(find_module(merged, path).weight.T != 0, kept)  # type: ignore[operator,arg-type]
    assert relative(before, logits(merged, tokens())) < 2e-5


def test_a_bias_of_lora_is_neither_masked_nor_lost() -> None:
    path = "model.layers.0.mlp.up_proj"
    small = tiny_model("llama-attention_bias")
    model = get_peft_model(
        small, LoraConfig(r=2, target_modules=[path], init_lora_weights=False, lora_bias=True)
    ).eval()
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        factors(find_module(model, path))[1].bias.fill_(0.5)
    mask_weight(model, path, torch.rand(96, 64, generator=torch.Generator().manual_seed(0)) < 0.5)
    before = logits(model, tokens())
    assert relative(before, logits(merge_lora(model), tokens())) < 2e-5
