"""The commands: their options, what carries them out, and what their help shows. Imports no torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

from loraprune.commands.compare.settings import CompareConfig
from loraprune.config import commands, export
from loraprune.config.base import Options
from loraprune.config.target import AMOUNTS
from loraprune.config.training import FinetuneConfig, PruneConfig

RUN = ("model", "data", "eval", "output", "overwrite", "length", "steps", "batch", "lr", "eval_every", "resume")
"""options that the help of every training command shows"""


@dataclass(frozen=True, slots=True)
class Command:
    """One command and its options."""

    options: type[Options]
    function: str
    """the `module:function` in loraprune that carries it out"""
    show: str
    """the `module:function` in loraprune.commands.tables that prints the result"""
    examples: tuple[str, ...]
    """command lines for the help, without the word loraprune"""
    bare: str | None = None
    """option that words without a flag are a value of"""
    common: tuple[str, ...] = ()
    """options that --help shows; all of them if empty"""

    @property
    def summary(self) -> str:
        """Return what the command does, in one sentence."""
        return (self.options.__doc__ or "").strip().splitlines()[0]

    @property
    def required(self) -> list[str]:
        """Return the names of the options without a default."""
        return [one.name for one in fields(self.options) if one.default is one.default_factory is MISSING]


COMMANDS: dict[str, Command] = {
    "inspect": Command(
        commands.InspectConfig, "commands.inspect:inspect", "shapes:inspection", bare="model", examples=("inspect Qwen/Qwen3-0.6B",)
    ),
    "plan": Command(
        commands.PlanConfig, "commands.plan:dry_run", "shapes:dry_run", bare="model",
        examples=("plan llama-3-8b --ratio 0.2 --batch 4 --gpus 2 --sharding fsdp", "plan known"),
        common=(
            "model", "ratio", *AMOUNTS, "sizes", "batch", "length", "accumulate", "quantize", "checkpointing", "gpus", "sharding",
        ),
    ),
    "prune": Command(
        PruneConfig, "pipeline:prune", "results:report",
        examples=("prune --model Qwen/Qwen3-0.6B --data train.jsonl --output small --ratio 0.2 --steps 1000",
                  "prune --model demo --data stdlib --output small --recipe layerwise --steps 100"),
        common=(*RUN, "ratio", "size", "sizes", "file_size", "speedup", "max_drop"),
    ),
    "finetune": Command(
        FinetuneConfig, "pipeline:finetune", "results:report",
        examples=("finetune --model Qwen/Qwen3-0.6B --data train.jsonl --output tuned --steps 1000",), common=RUN,
    ),
    "resume": Command(
        commands.ResumeConfig, "commands.resume:resume", "results:report", bare="output", examples=("resume small",)
    ),
    "evaluate": Command(
        commands.EvaluateConfig, "commands.evaluate:evaluate", "results:evaluation", bare="model",
        examples=("evaluate small --against Qwen/Qwen3-0.6B --data test.txt",
                  "evaluate small --against Qwen/Qwen3-0.6B --tasks zero-shot --limit 500 --record"),
        common=("model", "against", "data", "length", "rows", "batch", "tasks", "limit", "record", "device"),
    ),
    "benchmark": Command(
        commands.BenchmarkConfig, "commands.benchmark:benchmark", "results:comparison", bare="model",
        examples=("benchmark small --against Qwen/Qwen3-0.6B", "benchmark small --formats gguf:q8_0"),
    ),
    "report": Command(
        commands.ReportConfig, "commands.report:redraw", "results:drawn", bare="model", examples=("report small --plots plots",)
    ),
    "export": Command(
        export.ExportConfig, "export.run:export", "results:export", bare="model",
        examples=("export small --format gguf --quantization q8_0 --output small-gguf",),
    ),
    "push": Command(
        export.PushConfig, "export.push:push", "results:pushed", bare="model", examples=("push small --repo me/small --private",)
    ),
    "compare": Command(
        CompareConfig, "commands.compare.run:compare", "results:compared",
        examples=("compare --model demo --data stdlib --output grid --steps 60 --grid.ratio [0.2,0.5] --grid.seed [0,1]",
                  "compare --config grid.yaml"),
        common=(*(name for name in RUN if name not in ("eval_every", "resume")), "ratio", "grid", "runs", "baselines", "reference",
                "jobs", "keep"),
    ),
    "compare-models": Command(
        commands.CompareModelsConfig, "commands.compare_models:compare_models", "results:lined_up", bare="models",
        examples=("compare-models Qwen/Qwen3-0.6B small small-50 --data test.txt --output table",),
    ),
    "demo": Command(commands.DemoConfig, "commands.demo:demo", "results:demo", examples=("demo",)),
}  # fmt: skip

SECTIONS: dict[str, tuple[str, ...]] = {
    "before a run": ("inspect", "plan"),
    "runs": ("prune", "finetune", "resume", "compare", "demo"),
    "after a run": ("evaluate", "benchmark", "compare-models", "report"),
    "use the result": ("export", "push"),
}
"""title -> commands below it, in the overview"""
GENERAL = {
    "config": "YAML file with options, such as the run.yaml of a run; options on the command line override it",
    "recipe": "ready set of options: {recipes}; --config and the command line override it",
    "json": "print the result as JSON",
    "debug": "show the traceback of an error",
    "print_config": "print all options as YAML, and exit",
}
"""options that every command takes besides its own; --recipe belongs to the commands that prune"""
