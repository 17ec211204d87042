"""Is the fused Eq 10 bound by memory, and is it right? On a CUDA device; a minute.

    python benchmarks/kernel.py [--sweep FORM ...]

Bandwidth: bytes of the stored weight over the median time of a whole call (kernel and final sums), which reads each once. Its measure
is a copy of the same tensor on the same device: bytes read plus bytes written over its median time. `share_of_copy` is the
first over the second. Both are recorded as a CUDA graph and replayed, so that it is the device's time and not Python's;
before every run the second-level cache is overwritten. `against_tiled` is the time of the tiles of PyTorch over that of the kernel,
on the same weight in the same process. --sweep also times other sizes of tiles.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from helpers import common
from torch import Tensor

from loraprune.models.quantised.forms import NF4_BLOCK, Int8Rows, Nf4Blocks, Weight, nf4_levels
from loraprune.scoring.kernels import eq10_sums, eq10_tiles
from loraprune.scoring.kernels.factors import Factors

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
    """Return LoRA of one weight in the middle of training, with gradients."""
    a, grad_a = (
        torch.randn(2, 1, rank, in_, device=device) * torch.tensor([0.05, 0.01], device=device)[:, None, None, None]
    )
    b, grad_b = (
        torch.randn(2, 1, out, rank, device=device) * torch.tensor([0.05, 0.01], device=device)[:, None, None, None]
    )
    return Factors(a.contiguous(), b.contiguous(), grad_a.contiguous(), grad_b.contiguous(), scaling=2.0)


def worst_error(weight: Weight, exact: Tensor, factors: Factors) -> float:
    """Return the largest relative error over rows, columns and powers, against Eq 10 term by term in float64."""
    a, b, grad_a, grad_b = (tensor[0].double() for tensor in factors.tensors())
    saliency = (grad_b @ a + b @ grad_a - grad_b @ grad_a) * (exact + factors.scaling * b @ a)
    worst = 0.0
    for power, values in ((1, saliency.abs()), (2, saliency.square())):
        first, again = (eq10_sums([weight], factors, power=power) for _ in range(2))
        for found, same, wanted in zip(first, again, (values.sum(1), values.sum(0)), strict=True):
            assert found is not None
            assert same is not None
            assert torch.equal(found, same), "two calls gave different bits"
            worst = max(worst, float(((found[0].double() - wanted) / wanted).abs().max()))
    return worst


def seconds(function: Callable[[], object], *, flush: Tensor, repeats: int = 30) -> float:
    """Return the median time of a call on the device, with a cold cache."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, stop in pairs:
        flush.zero_()  # also keeps the device busy while the host prepares the replay
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in pairs) / 1e3


def measure(form: str, out: int, in_: int, *, rank: int, flush: Tensor) -> dict[str, Any]:
    """Return errors, bandwidths and times of one weight, for each side that a group may want of it."""
    weight, exact, size = random_weight(form, out, in_, flush.device)
    factors = random_factors(out, in_, rank, flush.device)
    error = worst_error(weight, exact, factors)
    del exact
    stored = weight if isinstance(weight, Tensor) else weight.codes if isinstance(weight, Int8Rows) else weight.packed
    target = torch.empty_like(stored)
    row: dict[str, Any] = {"form": form, "out": out, "in": in_, "rank": rank, "bytes": size, "worst_error": error}
    copied = 2 * stored.nbytes
    row["copy_bytes_per_second"] = copied / seconds(lambda: target.copy_(stored), flush=flush)
    for name, sides in (("rows", (True, False)), ("columns", (False, True)), ("both", (True, True))):
        wanted = dict(zip(("rows", "columns"), sides, strict=True))

        def fused(wanted: dict[str, bool] = wanted) -> None:
            eq10_sums([weight], factors, power=2, **wanted)

        took = seconds(fused, flush=flush)
        tiled = seconds(lambda wanted=wanted: eq10_tiles([weight], factors, power=2, **wanted), flush=flush, repeats=5)
        row[name] = {
            "seconds": took, "bytes_per_second": size / took, "share_of_copy": size / took / row["copy_bytes_per_second"],
            "against_tiled": tiled / took,
        }  # fmt: skip
    return row


DENSE = [(64, 64, 4, stages, resident) for stages, resident in itertools.product((2, 3, 4), (3, 4))] + [
    *((64, 128, 4, stages, resident) for stages, resident in itertools.product((1, 2, 3), (2, 3))),
    *((128, 128, 8, stages, 1) for stages in (2, 3)),
]
CANDIDATES: dict[str, list[tuple[int, ...]]] = {
    "bfloat16": DENSE,
    "float32": [(64, 64, 4, 2, 3), (64, 64, 4, 3, 2), (64, 64, 4, 3, 3), (64, 64, 4, 4, 2), (64, 128, 4, 2, 1), (64, 128, 4, 2, 2)],
    "int8": DENSE,
    "nf4": [(64, 64, 4, 1, resident) for resident in (2, 3, 4, 6)] + [(64, 128, 4, 1, resident) for resident in (1, 2, 3)],
}  # fmt: skip
"""what --sweep tries: rows and columns of a tile, warps, stages, and programs a multiprocessor"""


def candidate(form: str, rank: int, choice: tuple[int, ...], sides: tuple[bool, bool]) -> float | None:
    """Return the time of one choice of sizes on the first shape, None where there is no room for it."""
    from loraprune.scoring.kernels.eq10 import Blocks, launch

    device = torch.device("cuda")
    flush = torch.empty(1 << 28, dtype=torch.int8, device=device)
    weight, _, _ = random_weight(form, *SHAPES[0], device)
    factors = random_factors(*SHAPES[0], rank, device)
    bm, bn, warps, stages, resident = choice
    sizes = Blocks(bm=bm, bn=bn, warps=warps, stages=stages, programs=132 * resident)
    rows, columns = sides

    def call() -> None:
        launch([weight], factors, power=2, rows=rows, columns=columns, sizes=sizes)

    try:
        return seconds(call, flush=flush, repeats=10)
    except Exception as error:  # out of shared memory or registers: Triton has an error of its own for each
        print(f"{form} {choice} {sides}: {type(error).__name__}")
        return None


def sweep(form: str, *, rank: int) -> list[dict[str, Any]]:
    """Return times of other block sizes on the first shape, fastest first; they are compiled in many processes before."""
    jobs = [(form, rank, choice, sides) for choice in CANDIDATES[form] for sides in ((True, False), (False, True))]
    with ProcessPoolExecutor(12, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(candidate, *zip(*jobs, strict=True)))
    found = [(candidate(*job), job) for job in jobs]
    rows = [
        {"form": form, "side": "rows" if sides[0] else "columns", "sizes": choice, "seconds": took}
        for took, (_, _, choice, sides) in found
        if took is not None
    ]
    return sorted(rows, key=lambda row: row["seconds"])


def run(device: torch.device, *, rank: int = 8, swept: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return all measurements on a CUDA device."""
    torch.manual_seed(0)
    flush = torch.empty(1 << 28, dtype=torch.int8, device=device)
    rows = [measure(form, out, in_, rank=rank, flush=flush) for form in FORMS for out, in_ in SHAPES]
    return {
        "definition": "bytes of the stored weight / median time of a replayed call; copy: bytes read and written / median time",
        "rank": rank,
        "correct": all(row["worst_error"] < LIMIT[row["form"]] for row in rows),
        "limits": LIMIT,
        "rows": rows,
        "sweep": [row for form in swept for row in sweep(form, rank=rank)],
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
