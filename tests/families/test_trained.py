"""What every family promises of a model in use: it generates and goes on learning as if it were masked."""

from __future__ import annotations

import pytest
import torch

from loraprune.pruning.masking import Masks
from loraprune.pruning.surgery import slice_
from tests.families.promises import SAME, build, every_variant
from tests.tiny import EVERY, relative, tokens, uneven_plan, uniform_plan

GENERATING = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
generating = pytest.mark.parametrize(
    "variant", [name for name, one in EVERY.items() if one.head in GENERATING], scope="module"
)


@generating
def test_generation_with_and_without_cache_and_masked_agree(variant: str) -> None:
    model, groups = build(variant, lora=False)
    plan = uniform_plan(groups, 3, 40)
    prompt = tokens(rows=2, length=14)

    def generate(*, use_cache: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens, past the sliding windows, and the logits that each was chosen by."""
        found = model.generate(  # type: ignore[operator]
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, min_new_tokens=6, do_sample=False,
            use_cache=use_cache, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        return found.sequences, torch.stack(found.logits)

    _, dense = generate(use_cache=True)
    masks = Masks(model, groups)
    masks.set(plan.kept)
    chosen, reference = generate(use_cache=False)
    masks.remove()
    slice_(model, groups, plan.kept)
    for use_cache in (True, False):
        found, scores = generate(use_cache=use_cache)
        assert scores.shape[:2] == (6, 2)
        assert torch.equal(found, chosen)
        assert relative(reference, scores) < SAME
    assert relative(reference, dense) > 1e-2


@every_variant
def test_training_goes_on_after_a_cut_as_if_masked(variant: str) -> None:
    model, groups = build(variant, lora=True)
    plan, batch = uneven_plan(groups), EVERY[variant].batch()
    twin, _ = build(variant, lora=True)
    losses = {}
    for name, trained in (("masked", twin), ("sliced", model)):
        optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=2e-3)
        masks = Masks(trained, groups)
        losses[name] = []
        for step in range(8):
            loss = trained(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())
            del loss
            if step == 1 and name == "masked":
                masks.set(plan.kept)
            if step == 1 and name == "sliced":
                masks.remove()
                slice_(trained, groups, plan.kept, optimizer=optimizer)
                for parameter, state in optimizer.state.items():
                    assert state["exp_avg"].shape == parameter.shape
    assert losses["sliced"] == pytest.approx(losses["masked"], rel=1e-4)
    assert losses["sliced"][-1] < losses["sliced"][2]
