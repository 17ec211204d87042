"""An improved `lora`: what each factor's gradient shows of G is scaled back before it is used.

The gradients are dB = s G A^T and dA = s B^T G. Eq 9 multiplies them by A and B as they are, so that its column half is noise
while B is small and its row half once B is large. Here both are projected instead, whatever the lengths of A and B.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import Tile, register_saliency

CUTOFF = 1e-5
"""directions of a factor shorter than this fraction of its longest show nothing"""


@register_saliency("sketch")
def sketch(tile: Tile) -> Float[Tensor, "rows in_"]:
    """Return (G P_A + P_B G - P_B G P_A) * W, the part of G that A's rows and B's columns span.

    P_A = A^T (A A^T)^-1 A and P_B = B (B^T B)^-1 B^T; the estimate is one product of rank 2r.
    """
    inverse_a = torch.linalg.pinv(tile.a @ tile.a.T, rtol=CUTOFF, hermitian=True)
    inverse_b = torch.linalg.pinv(tile.whole_b.T @ tile.whole_b, rtol=CUTOFF, hermitian=True)
    right = inverse_a @ tile.a
    own = tile.b @ inverse_b
    # B^T dB = s B^T G A^T is known from dA too: what both halves hold is counted once.
    left = torch.cat((tile.grad_b, own), dim=1)
    both = torch.cat((right, tile.grad_a - (tile.grad_a @ tile.a.T) @ right), dim=0)
    return (left @ both).div_(tile.scaling).mul_(tile.merged())
