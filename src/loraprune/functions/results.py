"""Results of the functions: frozen, typed, and with `values`, the object that the command prints with `--json`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import PreTrainedModel

from loraprune.reporting.card import CARD, model_card
from loraprune.reporting.html.page import NAME as PAGE
from loraprune.reporting.html.page import write_page
from loraprune.reporting.report import Report
from loraprune.runtime.hub import at_home
from loraprune.runtime.workspace import new_folder


class Both(NamedTuple):
    """A count of the dense and of the pruned model."""

    dense: int
    pruned: int


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run of `prune` or `finetune`: the model, its report, and the verified folder that both are in."""

    model: PreTrainedModel
    """the model of the folder, in evaluation mode; it shares no weights with the given model"""
    report: Report
    folder: Path
    """checkpoint with tokenizer, report.json and the other files of a run; without an `output` it is removed with the result"""

    def __repr__(self) -> str:
        quality, (dense, pruned) = self.report.quality, self.report.parameters
        return (
            f"Result({self.report.job}: {dense:,} -> {pruned:,} parameters, {self.report.metric} {quality.dense:.4g} -> "
            f"{quality.pruned:.4g}, folder={str(self.folder)!r})"
        )

    @property
    def values(self) -> dict[str, Any]:
        """Return what report.json holds."""
        return self.report.values

    @property
    def sizes(self) -> dict[float, Path]:
        """Return size -> folder for all sizes of `sizes`, largest first; empty without that argument."""
        return (
            {one.size: self.folder.parent / one.folder for one in self.report.sizes.sizes} if self.report.sizes else {}
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the folder that the command would have written with `--output`, and return it.

        Args:
            folder: Folder to write; it appears complete or not at all.
            overwrite: Whether to replace a folder that a run wrote.

        Raises:
            CheckpointError: if the folder exists and may not be replaced, or cannot be written.
        """
        output = Path(at_home(str(folder)))
        with new_folder(output, overwrite=overwrite) as place:
            shutil.copytree(self.folder, place, dirs_exist_ok=True)
            options = yaml.safe_load((place / "run.yaml").read_text(encoding="utf-8"))
            (place / "run.yaml").write_text(
                yaml.safe_dump({**options, "output": str(folder)}, sort_keys=False), encoding="utf-8"
            )
            (place / CARD).write_text(model_card(self.report, output=str(output)), encoding="utf-8")
            if (place / PAGE).is_file():
                write_page(place)
        return output


@dataclass(frozen=True)
class Inspection:
    """What can be pruned in a model."""

    family: str
    layers: int
    parameters: int
    prunable: int
    """parameters that pruning can remove"""
    kinds: tuple[Mapping[str, Any], ...]
    """for each kind of unit: `kind`, `where`, `groups`, `units`, `parameters_a_unit`, `parameters`, `spans`, `stock`"""
    values: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Inspection:
        """Return what the values of the command say."""
        named = {name: values[name] for name in ("family", "layers", "parameters", "prunable")}
        return cls(**named, kinds=tuple(values["kinds"]), values=values)


@dataclass(frozen=True)
class Prediction:
    """Predicted size and memory of a run."""

    parameters: Both
    ratio: float
    """fraction of the prunable parameters that would be removed"""
    shapes: Mapping[str, Any]
    """keys of config.json with the values that the pruned model would have"""
    file_bytes: Both
    memory_bytes: Both
    """of a training step, on each GPU"""
    step_flops: Both
    values: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Prediction:
        """Return what the values of the command say."""
        parameters, memory = values["parameters"], values["memory_bytes"]
        return cls(
            Both(parameters["dense"], parameters["pruned"]), values["ratio_reached"], values["shapes"], Both(**values["file_bytes"]),
            Both(memory["dense"]["total"], memory["pruned"]["total"]), Both(**values["step_flops"]), values,
        )  # fmt: skip


class Figure(NamedTuple):
    """One model on one data set."""

    model: str
    data: str
    length: int
    metric: str
    value: float
    standard_error: float | None
    """of a perplexity, that of its logarithm"""


@dataclass(frozen=True)
class Evaluation:
    """Quality of models. Models in memory are called `CLASS in memory`."""

    metric: str | None
    """perplexity, accuracy, ...; None where only tasks of lm-eval were asked"""
    value: float | None
    """of the model, on the first data"""
    figures: tuple[Figure, ...]
    """every model on all data, the one compared with first"""
    tasks: Mapping[str, Any]
    """rows and protocol of lm-eval; empty where none was asked"""
    values: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Evaluation:
        """Return what the values of the command say."""
        figures = tuple(
            Figure(model, one["data"], one["length"], one["metric"], found[one["metric"]], found["standard_error"])
            for one in values["measurements"]
            for model, found in one["models"].items()
        )
        asked = next((one for one in figures if one.model == values["names"][-1]), None)
        return cls(
            asked.metric if asked else None, asked.value if asked else None, figures, values.get("tasks", {}), values
        )


@dataclass(frozen=True)
class Speed:
    """Sizes and speeds by model, the first being the reference."""

    parameters: Mapping[str, int]
    prefill_seconds: Mapping[str, Mapping[int, float]]
    """model -> batch -> median"""
    decode_tokens_per_second: Mapping[str, float | None]
    speedup: Mapping[str, Mapping[int, float]]
    """model -> batch -> prefill time of the first model over this one's, paired"""
    values: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Speed:
        """Return what the values of the command say."""
        rows, ratios = values["rows"], values["ratios"]
        return cls(
            {name: row["parameters"] for name, row in rows.items()},
            {
                name: {int(batch): spread["median"] for batch, spread in row["prefill_seconds"].items()}
                for name, row in rows.items()
            },
            {name: row["decode_tokens_per_second"] for name, row in rows.items()},
            {
                name: {int(batch): value for batch, value in one["prefill_speedup"].items()}
                for name, one in ratios.items()
            },
            values,
        )


@dataclass(frozen=True)
class Comparison:
    """Models of one task, compared."""

    metric: str
    quality: Mapping[str, float]
    """model -> figure; empty without data"""
    speed: Speed
    values: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Comparison:
        """Return what the values of the command say."""
        metric = values["metric"]
        found = {name: measured[metric] for name, measured in values[metric].items()}
        return cls(metric, found, Speed.of(values["speed"]), values)


@dataclass(frozen=True)
class Exported:
    """A model in another format."""

    folder: Path
    format: str
    quantization: str
    bytes: int
    """of all files"""
    verification: Mapping[str, float]
    """what was compared -> largest difference, relative to the largest value"""
    verified_by: str
    load: str
    """what loads it"""
    values: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Exported:
        """Return what the values of the command say."""
        names = ("format", "quantization", "bytes", "verification", "verified_by", "load")
        return cls(folder=Path(values["output"]), **{name: values[name] for name in names}, values=values)
