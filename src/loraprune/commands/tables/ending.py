"""Print the end of a run: the verdict, where the result is, and the commands that make sense next."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.text import Text

from loraprune.commands.config_file import read_config
from loraprune.config.base import as_typed, dashed
from loraprune.config.training import FinetuneConfig
from loraprune.export.gguf.architecture import ARCHITECTURES
from loraprune.reporting.html.page import NAME as PAGE
from loraprune.reporting.report import NAME, Report
from loraprune.reporting.sizes import TABLE as SIZES_TABLE

STYLES = {"usable": "bold green", "ruined": "bold red"}
DEFAULT_STEPS = 200
"""steps to try after a run without training"""


def ending(result: Report) -> None:
    """Print verdict, files and next commands, on lines that can be copied."""
    folder, verdict = Path(_folder(result)), result.verdict
    console = Console()
    lines = [("result", str(folder)), ("report", str(folder / (PAGE if (folder / PAGE).is_file() else NAME)))]
    if result.sizes:
        lines.append(("sizes", str(folder.parent / SIZES_TABLE)))
    about = f"verdict on {folder.name}%" if result.sizes else "verdict"
    console.print()
    console.print(
        Text.assemble(f"{about}  ", (verdict.word, STYLES.get(verdict.word, "bold yellow")), f": {verdict.reason}")
    )
    for name, text in lines:
        console.print(Text(f"{name:8} {text}"), soft_wrap=True)
    for purpose, command in next_steps(result):
        console.print(Text(f"\n{purpose}:"))
        console.print(Text(f"  {command}"), soft_wrap=True)


def next_steps(result: Report) -> list[tuple[str, str]]:
    """Return purpose and command of what to do next, the most useful first."""
    word = result.verdict.word
    if word == "usable":
        return [*_evaluate(result), *_export(result)]
    if word == "not comparable":
        return [*(_dense_baseline(result) if result.has_new_head else ()), *_evaluate(result)]
    if result.job == "finetune":
        return _tune_differently(result)
    longer, less = _train_longer(result), _cut_less(result)
    # A new head that learned nothing needs more steps, whatever was removed.
    return [*less, *longer] if word == "ruined" and not result.has_new_head else [*longer, *less]


def _evaluate(result: Report) -> list[tuple[str, str]]:
    words = ["evaluate", _folder(result), "--against", result.model, "--data", "YOUR_TEST_DATA"]
    if result.has_new_head:  # the dense model has no head to evaluate
        words = ["evaluate", _folder(result), "--data", "YOUR_TEST_DATA"]
    return [("evaluate it on your own data", _command(*words))]


def _export(result: Report) -> list[tuple[str, str]]:
    known = ARCHITECTURES.get(result.verification.saved_as)
    is_gguf = result.task == "causal-lm" and known is not None and not known.full_heads
    kind, program = ("gguf", "llama.cpp") if is_gguf else ("onnx", "onnxruntime")
    return [(f"convert it for {program}",
             _command("export", _folder(result), "--format", kind, "--output", f"{_folder(result)}-{kind}"))]  # fmt: skip


def _dense_baseline(result: Report) -> list[tuple[str, str]]:
    words = ["finetune", "--model", result.model, "--data", result.data, "--output", f"{_folder(result)}-dense"]
    words += ["--steps", str(result.training.steps or DEFAULT_STEPS), *_shared_options(Path(_folder(result)))]
    return [("tune the dense model to compare with", _command(*words))]


def _shared_options(folder: Path) -> list[str]:
    """Return the options of a run that `finetune` has too and that are not at their defaults, without those about its output."""
    file = folder / "run.yaml"
    values = read_config(str(file)) if file.is_file() else {}
    named = {"model", "data", "output", "overwrite", "resume", "steps"}
    changed = [
        one.name for one in fields(FinetuneConfig)
        if one.name in values and one.name not in named and values[one.name] != one.default
    ]  # fmt: skip
    return [word for name in changed for word in (f"--{dashed(name)}", as_typed(values[name]))]


def _tune_differently(result: Report) -> list[tuple[str, str]]:
    peak = max((float(entry["lr"]) for entry in result.training.curve if "lr" in entry), default=1e-4)
    return [("tune with a lower learning rate", _again(result, "--lr", f"{peak / 3:.2g}"))]


def _train_longer(result: Report) -> list[tuple[str, str]]:
    return [("train longer", _again(result, "--steps", str(2 * result.training.steps or DEFAULT_STEPS)))]


def _cut_less(result: Report) -> list[tuple[str, str]]:
    """Return the same run with half the ratio; with other targets, a model between the dense and the pruned one."""
    removed = result.removed
    if removed is None or result.sizes or (removed.sparsity and ":" in removed.sparsity.pattern):
        return []  # there are larger sizes already, or N:M fixes the ratio
    if removed.ratio_requested is not None:
        return [("remove less", _again(result, "--ratio", f"{removed.ratio_requested / 2:.2g}"))]
    target = removed.target or {}
    if target.get("size") is not None:
        return [("remove less", _again(result, "--size", f"{(1 + target['size']) / 2:.2g}"))]
    if target.get("max_drop") is not None:
        return [("remove less", _again(result, "--max-drop", f"{target['max_drop'] / 2:.2g}"))]
    if target.get("parameters") is not None:
        return [("remove less", _again(result, "--parameters", str(sum(result.parameters) // 2)))]
    if target.get("speedup") is not None:
        return [("remove less", _again(result, "--speedup", f"{(1 + target['speedup']) / 2:.3g}"))]
    reached = removed.reached or {}
    for option, entry in (("file_size", "file_bytes"), ("memory", "memory_bytes")):
        if target.get(option) is not None:
            dense, pruned = result.parameters
            more = (dense - pruned) / 2 * reached.get("weight_bytes", reached[entry]) / pruned
            return [("remove less", _again(result, f"--{dashed(option)}", f"{(reached[entry] + more) / 1000:.0f}kB"))]
    return []  # widths of every layer are a choice of the user


def _again(result: Report, *changes: str) -> str:
    """Return the command of the same run with some options changed."""
    folder = _folder(result)
    output = Path(folder).parent if result.sizes else folder
    return _command(result.job, "--config", f"{folder}/run.yaml", "--output", f"{output}-2", *changes)


def _folder(result: Report) -> str:
    return (result.folder or "OUTPUT").rstrip("/")


def _command(*words: str) -> str:
    return shlex.join(["loraprune", *words])
