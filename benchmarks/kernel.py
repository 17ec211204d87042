"""Is the fused Eq 10 bound by memory, and is it right? On a CUDA device; a minute.

    python benchmarks/kernel.py [--sweep]

Bandwidth: bytes of the stored weight over the median time of a whole call (kernel and final sums), which reads each once. Its measure
is a copy of the same tensor on the same device: bytes read plus bytes written over its median time. `share_of_copy` is the
first over the second. Before every run the second-level cache is overwritten. `against_tiled` is the time of the tiles
of PyTorch over that of the kernel, on the same weight in the same process. --sweep also times other sizes of tiles.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import common
import torch
from torch import Tensor, nn

from loraprune.adapters import Projection
from loraprune.criteria import criteria
from loraprune.kernels import Factors, Int8Rows, Nf4Blocks, Weight, eq10_sums
from loraprune.kernels.forms import NF4_BLOCK, nf4_levels
from loraprune.scoring.saliency import saliency_sums

SHAPES = ((11008, 4096), (4096, 11008), (4096, 4096))
"""gate_proj and up_proj, down_proj, and the attention projections of a 7B Llama"""
FORMS = ("bfloat16", "float32", "int8", "nf4")
LIMIT = {"float32": 1e-5, "bfloat16": 5e-5, "int8": 5e-5, "nf4": 5e-5}
"""largest relative error of a row's or column's sum against float64"""


def random_weight(form: str, out: int, in_: int, device: torch.device) -> tuple[Weight, Tensor, int]:
    """Return a random weight as it is stored, the float64 matrix it stands for, and its bytes with scales."""
    if form == "int8":
        codes = torch.randint(-127, 128, (out, in_), dtype=torch.int8, device=device)
        absmax = 0.05 + 0.1 * torch.rand(out, device=device)
        return Int8Rows(codes, absmax), codes.double() * absmax.double()[:, None] / 127, out * in_ + 4 * out
    if form == "nf4":
        packed = torch.randint(0, 256, (out * in_ // 2,), dtype=torch.uint8, device=device)
        absmax = 0.05 + 0.1 * torch.rand(out * in_ // NF4_BLOCK, device=device)
        codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten().long()
        exact = nf4_levels(device).double()[codes] * absmax.double().repeat_interleave(NF4_BLOCK)
        return Nf4Blocks(packed, absmax, (out, in_)), exact.view(out, in_), packed.numel() + 4 * absmax.numel()
    weight = (0.02 * torch.randn(out, in_, device=device)).to(getattr(torch, form))
    return weight, weight.double(), weight.nbytes


def random_factors(out: int, in_: int, rank: int, device: torch.device) -> Factors:
    """Return LoRA in the middle of training, with gradients."""
    a, grad_a = torch.randn(2, rank, in_, device=device) * torch.tensor([0.05, 0.01], device=device)[:, None, None]
    b, grad_b = torch.randn(2, out, rank, device=device) * torch.tensor([0.05, 0.01], device=device)[:, None, None]
    return Factors(a.contiguous(), b.contiguous(), grad_a.contiguous(), grad_b.contiguous(), scaling=2.0)


def worst_error(weight: Weight, exact: Tensor, factors: Factors) -> float:
    """Return the largest relative error over rows, columns and powers, against Eq 10 term by term in float64."""
    a, b, grad_a, grad_b = (tensor.double() for tensor in factors.tensors())
    saliency = (grad_b @ a + b @ grad_a - grad_b @ grad_a) * (exact + factors.scaling * b @ a)
    worst = 0.0
    for power, values in ((1, saliency.abs()), (2, saliency.square())):
        first, again = (eq10_sums(weight, factors, power=power) for _ in range(2))
        for found, same, wanted in zip(first, again, (values.sum(1), values.sum(0)), strict=True):
            assert found is not None
            assert same is not None
            assert torch.equal(found, same), "two calls gave different bits"
            worst = max(worst, float(((found.double() - wanted) / wanted).abs().max()))
    return worst


def seconds(function: Callable[[], object], *, flush: Tensor, repeats: int = 30) -> float:
    """Return the median time of a call on the device, with a cold cache."""
    for _ in range(3):
        function()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, stop in pairs:
        flush.zero_()  # also keeps the device busy while the host prepares the call
        start.record()
        function()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in pairs) / 1e3


def tiled_seconds(weight: Tensor, factors: Factors, sides: dict[str, bool], flush: Tensor) -> float:
    """Return the time of the scorer's tiles of PyTorch, which is what runs where the kernel cannot."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    a, b = nn.Parameter(factors.a), nn.Parameter(factors.b)
    a.grad, b.grad = factors.grad_a, factors.grad_b
    tiled = dataclasses.replace(criteria.get("lora"), fused=None)
    generator = torch.Generator()
    proj = Projection("layer", layer, a, b, factors.scaling)
    wanted: Any = {side for side, name in (("out", "rows"), ("in", "columns")) if sides[name]}
    with torch.no_grad():
        return seconds(lambda: saliency_sums(tiled, proj, generator, power=2, wanted=wanted), flush=flush, repeats=5)


def measure(form: str, out: int, in_: int, *, rank: int, flush: Tensor) -> dict[str, Any]:
    """Return errors, bandwidths and times of one weight, for each side that a group may want of it."""
    weight, exact, size = random_weight(form, out, in_, flush.device)
    factors = random_factors(out, in_, rank, flush.device)
    error = worst_error(weight, exact, factors)
    del exact
    stored = weight if isinstance(weight, Tensor) else weight.codes if isinstance(weight, Int8Rows) else weight.packed
    target = torch.empty_like(stored)
    row: dict[str, Any] = {"form": form, "out": out, "in": in_, "rank": rank, "bytes": size, "worst_error": error}
    row["copy_bytes_per_second"] = 2 * stored.nbytes / seconds(lambda: target.copy_(stored), flush=flush)
    for name, sides in (("rows", (True, False)), ("columns", (False, True)), ("both", (True, True))):
        wanted = dict(zip(("rows", "columns"), sides, strict=True))
        took = seconds(lambda wanted=wanted: eq10_sums(weight, factors, power=2, **wanted), flush=flush)
        row[name] = {"seconds": took, "bytes_per_second": size / took,
                     "share_of_copy": size / took / row["copy_bytes_per_second"]}  # fmt: skip
        if isinstance(weight, Tensor):
            row[name]["against_tiled"] = tiled_seconds(weight, factors, wanted, flush) / took
    return row


def sweep(form: str, *, rank: int, flush: Tensor) -> list[dict[str, Any]]:
    """Return times of other block sizes on the first shape, fastest first."""
    from loraprune.kernels.eq10 import Blocks, launch

    out, in_ = SHAPES[0]
    weight, _, size = random_weight(form, out, in_, flush.device)
    factors = random_factors(out, in_, rank, flush.device)
    rows = []
    for (bm, bn, warps), stages, resident in itertools.product(
        ((64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 64, 8), (64, 32, 4)), (2, 3, 4), (2, 3, 4, 8)
    ):
        sizes = Blocks(bm=bm, bn=bn, warps=warps, stages=stages, programs=132 * resident)
        for rows_, columns in ((True, False), (False, True)):
            took = seconds(
                lambda sizes=sizes, rows_=rows_, columns=columns: launch(
                    weight, factors, power=2, rows=rows_, columns=columns, sizes=sizes
                ),
                flush=flush, repeats=10,
            )  # fmt: skip
            rows.append({"form": form, "side": "rows" if rows_ else "columns", **dataclasses.asdict(sizes),
                         "seconds": took, "bytes_per_second": size / took})  # fmt: skip
    return sorted(rows, key=lambda row: row["seconds"])


def run(device: torch.device, *, rank: int = 8, swept: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return all measurements on a CUDA device."""
    torch.manual_seed(0)
    flush = torch.empty(1 << 28, dtype=torch.int8, device=device)
    rows = [measure(form, out, in_, rank=rank, flush=flush) for form in FORMS for out, in_ in SHAPES]
    return {
        "definition": "bytes of the stored weight / median time of a call; copy: bytes read and written / median time",
        "rank": rank,
        "correct": all(row["worst_error"] < LIMIT[row["form"]] for row in rows),
        "limits": LIMIT,
        "rows": rows,
        "sweep": [row for form in swept for row in sweep(form, rank=rank, flush=flush)[:12]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--sweep", nargs="*", default=[], choices=FORMS, help="formats to try other block sizes on")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    result = run(torch.device("cuda"), rank=options.rank, swept=tuple(options.sweep))
    for row in result["rows"]:
        shares = ", ".join(f"{name} {row[name]['share_of_copy']:.2f}" for name in ("rows", "columns", "both"))
        print(f"{row['form']} {row['out']} x {row['in']}: error {row['worst_error']:.1e}; share of copy: {shares}")
    for row in result["sweep"]:
        print(row)
    common.write("kernel", result)
    if not result["correct"]:
        raise SystemExit("the kernel differs from the float64 reference by more than its limits")


if __name__ == "__main__":
    main()
