"""Compile the kernel for devices that need not be here; write one line a variant: what it is and its shared memory.

Run in a process of its own, without Triton's interpreter.
"""

from __future__ import annotations

import itertools
import sys

import triton
from triton import language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from loraprune.scoring.kernels import eq10

TYPES = {"dense": "*bf16", "exact": "*fp32", "int8": "*i8", "nf4": "*u8"}


def compiled(form: str, rank: int, capability: int) -> int:
    """Return the bytes of shared memory that one variant takes."""
    exact, k = form == "exact", max(16, triton.next_power_of_2(2 * rank))
    sizes = eq10.blocks(form, k, exact=exact, columns=True)
    fixed = {
        "FORM": "dense" if exact else form, "POWER": 2, "ROWS": True, "COLUMNS": True, "EXACT": exact, "PIECE": tl.bfloat16,
        "ALIGNED": True, "RANK": rank, "K": k, "BM": sizes.bm, "BN": sizes.bn, "STAGES": sizes.stages, "stride_column": 1,
    }  # fmt: skip
    pointers = ("scales", "code", "a", "b", "grad_a", "grad_b", "row_parts", "column_parts")
    types = {"weight": TYPES[form], "places": "*i64", "scaling": "fp32"} | dict.fromkeys(pointers, "*fp32")
    names = [parameter.name for parameter in eq10._eq10.params]
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names}
    aligned = {"rows", "columns", "stride_row"} | {name for name in names if signature[name].startswith("*")}
    attributes = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name in aligned}
    source = ASTSource(
        eq10._eq10, signature, {(names.index(name),): value for name, value in fixed.items()}, attributes
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": sizes.warps}).metadata.shared


if __name__ == "__main__":
    variants = [*itertools.product(("dense", "int8", "nf4"), (8,), (90,)), ("exact", 8, 86), ("exact", 32, 86)]
    for variant in [*variants, ("dense", 64, 86)]:
        sys.stdout.write(f"{' '.join(map(str, variant))} {compiled(*variant)}\n")
