"""A mask on the merged weight of an adapted projection, W = M * (W0 + s B A): merging it later loses nothing.

W0 is zeroed where M is, for good. LoRA's part is computed as x (M * (B A))^T by two hooks on its factors, so that its
input, dropout included, and its scaling stay those of PEFT. Knows nothing about which weights to mask.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loraprune.models.adapters import KEPT_WEIGHTS, base_layer, factors, find_module, zero_weights_


class MaskedProduct(torch.autograd.Function):
    """y = x (M * (B A))^T with its gradients.

    The (out, in) product is formed again in the backward pass: left to autograd, every layer would keep one, a second
    model in memory. No more than one such matrix lives at any time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*rows in_"],
        a: Float[Tensor, "rank in_"],
        b: Float[Tensor, "out rank"],
        kept: Bool[Tensor, "out in_"],
    ) -> Float[Tensor, "*rows out"]:
        """Return the masked product."""
        ctx.save_for_backward(x, a, b, kept)
        return nn.functional.linear(x, (b @ a).mul_(kept))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of x, A and B; with G = dL/dW they are those of M * G."""
        x, a, b, kept = ctx.saved_tensors
        grad = gradients[0].to(a.dtype)  # 16 bits under autocast, where the factors have 32
        grad_x = grad @ (b @ a).mul_(kept) if ctx.needs_input_grad[0] else None
        outer = (grad.flatten(0, -2).T @ x.flatten(0, -2).to(a.dtype)).mul_(kept)
        return grad_x, b.T @ outer, outer @ a.T, None


def mask_weight(model: nn.Module, path: str, kept: Bool[Tensor, "out in_"]) -> None:
    """Let only the weights in `kept` act in the adapted projection at `path`; modifies `model`.

    A second call replaces the mask, but a weight that was zeroed in W0 stays zero. `merge_lora` applies the mask.
    """
    module = find_module(model, path)
    layer = base_layer(module)
    zero_weights_(layer, kept)
    if KEPT_WEIGHTS in layer._buffers:
        setattr(layer, KEPT_WEIGHTS, kept)
        return
    layer.register_buffer(KEPT_WEIGHTS, kept, persistent=False)  # a buffer follows the layer to another device
    lora_a, lora_b = factors(module)
    held: dict[str, Tensor] = {}

    def hold(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        held["x"] = args[0]

    def multiply(_: nn.Module, __: tuple[Tensor, ...], ___: Tensor) -> Tensor:
        result: Tensor = MaskedProduct.apply(
            held.pop("x"), lora_a.weight, lora_b.weight, layer.get_buffer(KEPT_WEIGHTS)
        )
        return result if lora_b.bias is None else result + lora_b.bias

    # What the factors compute themselves is dropped: two thin products, and no copy of PEFT's forward pass here.
    lora_a.register_forward_hook(hold)
    lora_b.register_forward_hook(multiply)
