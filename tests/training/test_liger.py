"""A model with Liger's kernels is scored, cut and saved like one without them, under Triton's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from loraprune import LoRAPruneConfig, save_pruned
from tests.fitting import config, prune
from tests.tiny import relative, tokens

pytest.importorskip("liger_kernel", reason="liger-kernel is not installed: pip install --no-deps liger-kernel")

SETTINGS = {
    "by gradients, in two removals": config(interval=1, warmup=0.25, cooldown=0.25),
    "by activations, with recovery": LoRAPruneConfig(
        ratio=0.5, rank=4, allocation="uniform", calibration=64, end_to_end=2
    ),
}

KERNELS = {"rope": True, "rms_norm": True, "swiglu": True, "fused_linear_cross_entropy": torch.cuda.is_available()}


@pytest.fixture
def _liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what Liger replaces in transformers, and let the interpreter pass numbers to kernels as a GPU does."""
    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    if not torch.cuda.is_available():
        import triton.language as tl
        from liger_kernel.ops import rms_norm
        from triton.runtime import interpreter

        given = interpreter._implicit_cvt

        def converted(value: Any) -> Any:
            if type(value) is not float:
                return given(value)
            return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)

        monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
        # The interpreter has no functions of libdevice, and replaces those of `tl.math` while a kernel runs.
        monkeypatch.setattr(rms_norm, "rsqrt", lambda value: tl.math.rsqrt(value))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.usefixtures("_liger")
@pytest.mark.filterwarnings(
    "ignore:.past_key_values. is deprecated:FutureWarning"
)  # Liger 0.8.5 with transformers 5.24
def test_a_run_with_liger_ends_with_the_model_of_a_run_without(settings: LoRAPruneConfig, tmp_path: Path) -> None:
    short: dict[str, Any] = {"steps": 4, "per_device_train_batch_size": 2}
    plain, one, _ = prune(tmp_path / "plain", settings, **short)
    model, other, trainer = prune(
        tmp_path / "liger", settings, **short, use_liger_kernel=True, liger_kernel_config=KERNELS
    )
    assert trainer.args.use_liger_kernel
    layer = model.get_base_model().model.layers[0]
    assert layer.mlp.forward.__func__.__module__.startswith("liger_kernel")  # the run did use the kernels
    assert other.pruner.plan == one.pruner.plan
    ids = tokens(2, 8)
    plain, model = plain.eval(), model.eval()
    with torch.no_grad():
        expected, found = plain(input_ids=ids).logits, model(input_ids=ids).logits
    assert relative(found, expected) < 1e-3
    save_pruned(other, tmp_path / "small")
    left = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        assert relative(left(input_ids=ids).logits, found) < 1e-4
