"""Several sizes from one run (`--sizes`): each is a whole run that starts from the merged model of the larger one before.

    OUTPUT.partial/sizes/90/           the folder that the largest size left
    OUTPUT.partial/sizes/80.partial/   the workspace of the size that is not finished

The runs share steps and calibration tokens, so that all of them train and recover on as much as one run does. Knows nothing about
training: whoever calls says how one run is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from loraprune.config.sizes import folder_of, in_percent
from loraprune.config.training import PruneConfig
from loraprune.errors import PlanError
from loraprune.pruning.preview import Preview, preview
from loraprune.pruning.removed import Removed
from loraprune.reporting.html.page import write_page
from loraprune.reporting.report import Report
from loraprune.reporting.sizes import Size, Sizes, advice_on, write_sizes
from loraprune.reporting.write import write_folder
from loraprune.rounds import RoundConfig, as_one_run, next_options, run_all, share, store_options
from loraprune.runtime.processes import first_alone, joined
from loraprune.runtime.workspace import SIZES, new_folder


def prune_to_sizes(config: PruneConfig, prune: Callable[[PruneConfig], Report]) -> Report:
    """Write a folder for every size of `config.sizes`, and a table, a plot and a recommendation beside them.

    Args:
        config: The options.
        prune: Does one run.

    Returns:
        The report of the recommended size, or of the largest if none is, with `sizes` about all of them.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    with (
        joined("prune", config.device),
        new_folder(Path(config.output), overwrite=config.overwrite, resume=config.resume, costly=True) as folder,
    ):
        first_alone(lambda: store_options(config, folder.parent))
        sizes, aims = config.all_sizes, find_aims(config)
        places = [folder.parent / SIZES / folder_of(size) for size in sizes]
        runs = {place: f"size {in_percent(size)}" for size, place in zip(sizes, places, strict=True)}
        reports = run_all(config, runs, partial(size_config, config, places=places, aims=aims), prune)
        return first_alone(lambda: _write_all(config, folder, places, reports, aims))


def find_aims(config: PruneConfig) -> list[Preview]:
    """Return what every size is to keep of the dense model, largest first, without reading weights.

    Raises:
        PlanError: if one cannot be reached, or two of them are the same shape.
    """
    sizes = config.all_sizes
    try:
        aims = [preview(config.of_size(size)) for size in sizes]
    except PlanError as error:
        raise PlanError(f"{config.sizes_given}: {str(error).removeprefix('--size ')}") from None
    kept = [aim.target.space.budget.kept(aim.target.counts) for aim in aims]
    for place, (more, less) in enumerate(pairwise(kept)):
        if less >= more:
            both = " and ".join(map(in_percent, sizes[place : place + 2]))
            raise PlanError(
                f"{config.sizes_given}: {both} give the same shape of this model; leave {in_percent(sizes[place + 1])} out"
            )
    return aims


def size_config(
    config: PruneConfig, turn: int, before: Sequence[Removed], *, places: Sequence[Path], aims: Sequence[Preview]
) -> RoundConfig:
    """Return the options of the run of one size; `before` is what the larger ones removed, `aims` what each is to reach."""
    shared = {
        name: share(total, turn, len(places))
        for name in ("calibration", "end_to_end", "local")
        if (total := getattr(config, name)) is not None
    }
    aim = aims[turn]
    options = next_options(config, turn, places, before, aim=aim, due=aim.target.ratio)
    shared["calibration"] = max(1, shared["calibration"])
    return RoundConfig(**options | shared | {"html": False}, turn=turn)


def _write_all(
    config: PruneConfig, folder: Path, places: Sequence[Path], reports: Sequence[Report], aims: Sequence[Preview]
) -> Report:
    """Write the folder of every size, with plan and report relative to the dense model, and the files about all of them."""
    made, sizes = [], config.all_sizes
    for turn, size in enumerate(sizes):
        inner = folder / folder_of(size)
        asked = config.of_size(size)
        report, scores = as_one_run(asked, inner, places[: turn + 1], reports[: turn + 1], aims[turn])
        report = replace(report, folder=str(Path(config.output) / inner.name))
        write_folder(inner, report, config, scores=scores)
        if config.html:
            write_page(inner)
        made.append(report)
    found = make_sizes(sizes, made)
    write_sizes(folder, found)
    names = list(map(in_percent, sizes))
    return replace(made[names.index(found.recommended) if found.recommended else 0], sizes=found)


def make_sizes(sizes: Sequence[float], reports: Sequence[Report]) -> Sizes:
    """Return what is to be said about the reports of several sizes, largest first, each relative to the dense model."""
    first, last = reports[0], reports[-1]
    made = [
        Size(
            size, folder_of(size), one.parameters[1], one.removed.ratio_reached if one.removed else 0.0, one.quality.pruned,
            one.quality.standard_error["pruned"], one.verdict.word,
        )
        for size, one in zip(sizes, reports, strict=True)
    ]  # fmt: skip
    # A tuned model beside an untuned one shows what was learned, not what was removed.
    is_alike = last.training.steps == 0 and not first.has_new_head
    advice = advice_on(
        first.metric, made, start=(float(first.parameters[0]), first.quality.dense) if is_alike else None
    )
    return Sizes(
        model=first.model, data=first.data, metric=first.metric, dense_parameters=first.parameters[0], dense=first.quality.dense,
        steps=last.training.steps, total_seconds=last.total_seconds, sizes=tuple(made), **asdict(advice),
    )  # fmt: skip
