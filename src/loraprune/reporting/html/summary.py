"""The figures at the top of a run's page, and the table of its details, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from loraprune.evaluation.measurement import BITS, PERPLEXITY, Compared
from loraprune.reporting.amounts import NEW_HEAD, UNTRAINED, call_time, change, duration, short, size
from loraprune.reporting.asked import asked_and_reached
from loraprune.reporting.html.labels import metric_of, pass_of
from loraprune.reporting.report import Report

TONES: Mapping[str, str] = {"usable": "good", "ruined": "bad", "not comparable": "neutral"}
"""verdict -> how the page colours it; all others are warnings"""


@dataclass(frozen=True, slots=True)
class Card:
    """One figure at the top of the page."""

    title: str
    figure: str
    """shown in large letters"""
    unit: str
    lines: Sequence[str]


def tone(report: Report) -> str:
    """Return the class of the verdict in the style sheet."""
    return TONES.get(report.verdict.word, "warning")


def origin(report: Report) -> str:
    """Return when and by which version a report was written, as far as it says."""
    version = report.versions.get("loraprune")
    moment = f"{datetime.fromisoformat(report.finished):%-d %B %Y, %H:%M} UTC" if report.finished else None
    return " · ".join(filter(None, (moment, f"loraprune {version}" if version else None)))


def cards(report: Report) -> Iterator[Card]:
    """Yield size, speed and quality of the model beside the dense one."""
    yield _size(report)
    if report.shown.speed:
        yield _speed(report.shown.speed)
    name = metric_of(report)
    if report.has_new_head:
        found = report.quality
        yield Card(_title(name), f"{found.pruned:.3f}", "", [f"{found.dense:.3f} with an {UNTRAINED}", NEW_HEAD])
    elif report.metric == PERPLEXITY:
        yield _perplexity(report.quality)
    else:
        yield _score(name, report.quality)


def _title(name: str) -> str:
    return name[0].upper() + name[1:]


def _size(report: Report) -> Card:
    before, after = report.parameters
    removed, speed = report.removed, report.shown.speed
    lines = [f"{short(before)} → {short(after)} parameters"]
    figure, unit = (change(before, after).lstrip("-"), "smaller") if after < before else ("unchanged", "")
    if removed and removed.sparsity:
        figure, unit = f"{100 * removed.ratio_reached:.1f} %", "zeros"
        lines = ["among the prunable weights; all shapes stay the same", *lines]
    elif removed:
        lines.append(f"{100 * removed.ratio_reached:.2f} % of the prunable parameters removed")
    if speed:
        dense, pruned = speed["rows"].values()
        if dense["file_bytes"] and pruned["file_bytes"]:
            lines.append(f"file: {size(dense['file_bytes'])} → {size(pruned['file_bytes'])}")
    return Card("Size", figure, unit, lines)


def _speed(speed: Mapping[str, Any]) -> Card:
    """Return a card whose factors are those of the very times and rates beside them."""
    dense, pruned = speed["rows"].values()
    batch = next(iter(dense["prefill_seconds"]))
    before, after = (row["prefill_seconds"][batch]["median"] for row in (dense, pruned))
    lines = [f"{pass_of(speed)}: {call_time(before)} → {call_time(after)}"]
    slow, fast = dense["decode_tokens_per_second"], pruned["decode_tokens_per_second"]
    if slow and fast:
        lines.append(f"generation: {fast / slow:.2f}×, {short(slow)} → {short(fast)} tokens/s")
    lines.append(f"expected from the number of MACs: {dense['macs_per_token'] / pruned['macs_per_token']:.2f}×")
    spreads = [row["prefill_seconds"][batch] for row in (dense, pruned)]
    lows, highs = ([one.get(end, one["median"]) for one in spreads] for end in ("minimum", "maximum"))
    if max(lows) < min(highs):
        lines.insert(1, "the times of the two overlap from run to run: measure again with `loraprune benchmark`")
    return Card("Speed", f"{before / after:.2f}×", "as fast", lines)


def _perplexity(found: Compared) -> Card:
    lines = [f"{found.dense:.2f} → {found.pruned:.2f}"]
    errors, loss = found.standard_error, found.others.get("nll", {})
    if errors["dense"] is not None and errors["pruned"] is not None:
        lines.append(f"loss: {loss['dense']:.3f} ± {errors['dense']:.3f} → "
                     f"{loss['pruned']:.3f} ± {errors['pruned']:.3f} nats per token")  # fmt: skip
    lines.append(f"{found.counts['tokens']:,} held-out tokens")
    return Card("Perplexity", f"{found.pruned / found.dense:.2f}×", "as high", lines)


def _score(name: str, found: Compared) -> Card:
    """Return the change of a figure that is 1 at best, in points of 0.01."""
    errors = found.standard_error
    dense, pruned = (
        f"{value:.3f}" + (f" ± {errors[which]:.3f}" if errors[which] is not None else "")
        for which, value in (("dense", found.dense), ("pruned", found.pruned))
    )
    points = f"{100 * (found.pruned - found.dense):+.1f}".replace("-", "−")
    lines = [f"{dense} → {pruned}; one point is 0.01", f"{found.counts['rows']:,} held-out rows"]
    return Card(_title(name), points, "points", lines)


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """Yield name and value of the other figures of a run."""
    if removed := report.removed:
        wanted = removed.ratio_requested
        words = f" (requested: {wanted:g})" if wanted is not None else ""
        yield "ratio reached", f"{removed.ratio_reached:.4f}{words}"
        yield from asked_and_reached(removed.target, removed.reached, report.parameters)
        yield "prunable parameters", f"{removed.prunable_dense:,} → {removed.prunable_pruned:,}"
        if shapes := removed.shapes:
            kept = next(one["shape"] for one in shapes["tried"] if one["kept"])
            yield "shape", f"{kept}, of {len(shapes['tried'])} that were tried: {shapes['reason']}"
    if search := report.search:
        yield f"largest cut within a loss of {100 * search.max_drop:g} %", f"{search.reason}; {search.outcome}"
    if cut := report.vocabulary:
        yield (
            "vocabulary",
            f"{cut['dense']:,} → {cut['kept']:,} tokens, {100 * cut['held_out_coverage']:.2f} % of the held-out ones",
        )
    if bits := report.quality.others.get(BITS):
        yield "bits per byte", f"{bits['dense']:.4f} → {bits['pruned']:.4f}"
    training, check = report.training, report.verification
    kept = training.kept_step
    yield "optimiser steps", f"{training.steps:,}" + (f", weights of step {kept} kept" if kept is not None else "")
    yield "training time", duration(training.seconds)
    yield "total time", duration(report.total_seconds)
    yield "peak memory of training", size(training.peak_memory_bytes)
    yield "seed", str(report.seed)
    if check.failed:
        yield "failed checks", "; ".join(check.failed)
    yield "masked and sliced model differ by", f"{check.masked_vs_sliced:.1e} (allowed: {check.tolerance:.0e})"
    yield "sliced and reloaded model differ by", f"{check.sliced_vs_reloaded:.1e} (allowed: {check.tolerance:.0e})"
    yield "load with", report.load
