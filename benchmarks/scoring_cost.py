"""What scoring takes of an optimiser step, by criterion, at accumulation 1 and 8.

    python benchmarks/scoring_cost.py

Steps with and without scoring alternate in one process; the share is the median of (with - without) / without.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from helpers import common
from helpers.common import SHAPE
from transformers import LlamaConfig, LlamaForCausalLM

from loraprune.families import find_groups
from loraprune.models.adapters import attach_lora
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import criteria


def share(criterion: str, *, accumulate: int, batch: int, length: int, repeats: int) -> dict[str, Any]:
    """Return the share of a step that scoring adds."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    groups = find_groups(config)
    model = attach_lora(LlamaForCausalLM(config), groups, rank=8, alpha=16, dropout=0.05, seed=0).train()
    rows = torch.randint(config.vocab_size, (batch, length))

    def step(scored: bool) -> float:
        began = time.perf_counter()
        scorer = (
            make_scorer(criteria.get(criterion), model, groups, power=2, normalize=False, seed=0) if scored else None
        )
        for _ in range(accumulate):
            (model(input_ids=rows, labels=rows).loss / accumulate).backward()
        if scorer:
            scorer.collect()
            scorer.close()
        model.zero_grad()
        return time.perf_counter() - began

    step(True)
    pairs = [(step(False), step(True)) for _ in range(repeats)]
    shares = [scored / plain - 1 for plain, scored in pairs]
    return {"criterion": criterion, "accumulate": accumulate, "share": common.spread(shares),
            "step_seconds": statistics.median(plain for plain, _ in pairs)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for accumulate in (1, 8):
        for criterion in ("lora", "gate"):
            repeats = options.repeats if accumulate == 1 else 4
            row = share(criterion, accumulate=accumulate, batch=options.batch, length=options.length, repeats=repeats)
            print(f"{criterion} accumulate {accumulate}: {100 * row['share']['median']:.2f} %", flush=True)
            rows.append(row)
    common.write("scoring_cost", {"shape": SHAPE, "options": vars(options), "rows": rows})


if __name__ == "__main__":
    main()
