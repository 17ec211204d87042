"""LoRA's factors of projections of one shape with their gradients: the kernels' inputs beside the weights."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """LoRA of some projections, W = W0 + scaling * B A, and the gradients of A and B."""

    a: Float[Tensor, "n rank in_"]
    b: Float[Tensor, "n out rank"]
    grad_a: Float[Tensor, "n rank in_"]
    grad_b: Float[Tensor, "n out rank"]
    scaling: float

    def tensors(
        self,
    ) -> tuple[
        Float[Tensor, "n rank in_"],
        Float[Tensor, "n out rank"],
        Float[Tensor, "n rank in_"],
        Float[Tensor, "n out rank"],
    ]:
        """Return A, B and their gradients."""
        return self.a, self.b, self.grad_a, self.grad_b
