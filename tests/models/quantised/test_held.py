"""8-bit layers of bitsandbytes hold their inputs no longer, and gradients are what they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from loraprune.models.quantised import prepare_

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def eight_bit(*, on_gpu: bool) -> nn.Module:
    """Return a layer of random weights; one that computes as on a GPU calls its function, which runs on a CPU too."""
    layer = bitsandbytes.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False, threshold=6.0)
    generator = torch.Generator().manual_seed(0)
    codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(torch.randn(32, 64, generator=generator).half())
    layer.weight = bitsandbytes.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    if on_gpu:
        layer.init_8bit_state()
        function = bitsandbytes.autograd._functions.MatMul8bitLt
        layer.forward = lambda x: function.apply(x, layer.weight, None, None, layer.state)
    return layer.train()


def steep() -> Tensor:
    """Return inputs of which some are outliers."""
    return (4 * torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))).requires_grad_()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_input_is_let_go_and_the_gradient_is_the_same(on_gpu: bool) -> None:
    left_alone, layer = eight_bit(on_gpu=on_gpu), eight_bit(on_gpu=on_gpu)
    prepare_(layer)
    gradients = []
    for each in (left_alone, layer):
        x = steep()
        output = each(x)
        node = output.grad_fn
        held = [*getattr(node, "tensors", ()), getattr(node, "A", None)]
        assert any(isinstance(tensor, Tensor) for tensor in held) is (each is left_alone)
        output.square().sum().backward()
        gradients.append(x.grad)
    assert gradients[0] is not None
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0].abs().sum() > 0
