"""Bad input: damaged models, plans, runs, grids, scores, texts and options through every command.

    python benchmarks/torture/inputs.py [--cases 560] [--seed 0]

A case holds if the command ends in time with exit code 2, one line for each problem, no traceback and nothing new on the
disk; or with 0, where the damage left the input good. Damage to weights that leaves a valid file with finite numbers cannot be
told from training: such a case ends with 0 too, and is counted apart. Results go to benchmarks/results/torture_inputs.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import datasets  # noqa: E402
import yaml  # noqa: E402
from benchmarks.torture.damage import BYTES, ODD_VALUES, TEXT, Damage, header, not_finite, rows, tree  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tests.samples import save_tiny, tiny_llama, write_text  # noqa: E402

from loraprune import cli  # noqa: E402
from loraprune.compare import run as compare_run  # noqa: E402
from loraprune.families import find_groups  # noqa: E402
from loraprune.plan import Plan  # noqa: E402

SECONDS = 60
"""limit of a case; one that is refused takes less than one, a run that ends well a few"""
MEMORY_BYTES = 12 << 30
"""address space beyond what the libraries take: more is asked for only by a damaged size that nobody checked"""
SHORT = {"steps": "1", "batch": "2", "length": "16", "rank": "2", "device": "cpu"}
TIMING = {"batches": "[1]", "length": "8", "tokens": "1", "repeats": "1", "device": "cpu"}


class TimeLimit(BaseException):
    """A case took too long; no handler for ordinary errors may catch it."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    kind: str
    command: str
    damage: str
    code: int | None
    seconds: float
    error: str
    lost: str
    """why the case does not hold; empty if it does"""


def make_good(root: Path) -> None:
    """Write one good file of every kind."""
    save_tiny(root / "model")
    model = tiny_llama()
    groups = find_groups(model.config)
    plan = Plan.full(groups)
    (root / "model" / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    save_file({name: model.lm_head.weight[:units, 0].clone().contiguous() for name, units in plan.units.items()},
              root / "scores.safetensors")  # fmt: skip
    write_text(root / "text.txt", 60)
    texts = {"text": (root / "text.txt").read_text(encoding="utf-8").splitlines()}
    table = datasets.Dataset.from_dict(texts)
    for suffix, write in (("jsonl", table.to_json), ("csv", table.to_csv), ("parquet", table.to_parquet)):
        write(root / f"text.{suffix}")
    turns = [{"messages": [{"role": "user", "content": line}, {"role": "assistant", "content": line[::-1]}]}
             for line in texts["text"]]  # fmt: skip
    datasets.Dataset.from_list(turns).to_json(root / "chat.jsonl")
    run: dict[str, Any] = {
        "ratio": 0.5,
        "criterion": "magnitude",
        "allocation": "uniform",
        "seed": 0,
        "lr": 1e-3,
        "warmup": 0.1,
    }
    (root / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    grid = {"grid": {"ratio": [0.2, 0.5], "seed": [0, 1]}, "runs": {"a": {"criterion": "lora"}, "b": {"recipe": "best"}},
            "baselines": ["finetune"], "reference": "a", "steps": 2}  # fmt: skip
    (root / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")


KINDS: Mapping[str, tuple[str, tuple[Damage, ...], tuple[str, ...]]] = {
    "config.json": ("model/config.json", (*TEXT, *[tree] * 14), ("inspect", "plan", "prune", "evaluate", "export")),
    "tokenizer": ("model/tokenizer.json", (*TEXT, *[tree] * 8), ("prune", "evaluate")),
    "tokenizer_config": ("model/tokenizer_config.json", (*TEXT, *[tree] * 8), ("finetune", "evaluate")),
    "weights": ("model/model.safetensors", (*BYTES, *[header] * 5, *[not_finite] * 3), ("prune", "evaluate", "benchmark", "export")),
    "plan.json": ("model/plan.json", (*TEXT, *[tree] * 8), ("export",)),
    "run.yaml": ("run.yaml", (*TEXT, *[tree] * 12), ("prune", "finetune", "plan")),
    "grid.yaml": ("grid.yaml", (*TEXT, *[tree] * 12), ("compare",)),
    "scores": ("scores.safetensors", (*BYTES, *[header] * 4, *[not_finite] * 4), ("prune", "plan")),
    "txt": ("text.txt", TEXT, ("prune", "evaluate")),
    "jsonl": ("text.jsonl", (*TEXT, *[rows] * 6), ("prune", "evaluate")),
    "chat": ("chat.jsonl", (*TEXT, *[rows] * 10), ("finetune", "evaluate")),
    "csv": ("text.csv", TEXT, ("prune", "evaluate")),
    "parquet": ("text.parquet", BYTES, ("prune", "evaluate")),
}  # fmt: skip
"""kind of input -> file, ways to spoil it, commands that read it"""
TEXTS = ("txt", "jsonl", "chat", "csv", "parquet")


def arguments(command: str, root: Path, *, text: str = "text.txt") -> dict[str, str]:
    """Return good options of a command."""
    model, data, output = ({"model": str(root / "model")}, {"data": str(root / text)}, {"output": str(root / "out")})
    return {
        "inspect": model,
        "plan": model | {"ratio": "0.5"},
        "prune": model | data | output | SHORT | {"criterion": "magnitude"},
        "finetune": model | data | output | SHORT,
        "evaluate": model | data | {"length": "16", "batch": "64", "device": "cpu"},
        "benchmark": model | TIMING,
        "export": model | output,
        "compare": model | data | output | SHORT,
        "demo": output | {"steps": "-1"},
    }[command]


def spoil(root: Path, number: int, draw: random.Random) -> tuple[str, str, str, list[str]]:
    """Spoil a good folder; return kind, command, how, and the command line."""
    names = [*KINDS, "options"]
    kind = names[number % len(names)]
    if kind == "options":
        command = draw.choice(list(cli.COMMANDS))
        options = arguments(command, root)
        known = [
            field for field in cli.COMMANDS[command].options.__dataclass_fields__ if field not in ("model", "data")
        ]
        chosen = {draw.choice(known): str(draw.choice(ODD_VALUES)) for _ in range(draw.choice([1, 1, 2, 3]))}
        for name in set(chosen) & {"output", "eval", "against"}:  # stay below the folder that is watched
            chosen[name] = str(root / (chosen[name].strip("./") or "x"))
        options |= chosen
        how = ", ".join(f"{name} = {value[:30]!r}" for name, value in chosen.items())
    else:
        file, damages, commands = KINDS[kind]
        command = draw.choice(commands)
        options = arguments(
            command,
            root,
            text=file if "/" not in file and kind in ("txt", "jsonl", "chat", "csv", "parquet") else "text.txt",
        )
        how = draw.choice(damages)(root / file, draw)
        if kind in ("run.yaml", "grid.yaml"):
            options = {"config": str(root / file)} | options
            options.pop("ratio", None)
            options.pop("criterion", None)
        if kind == "scores":
            options |= {"scores": str(root / file)}
    line = [command, *(part for name, value in options.items() for part in (f"--{name}={value}",))]
    return kind, command, how, line


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimit in a block that takes longer."""

    def stop(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def content(root: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"" for path in sorted(root.rglob("*"))
    }


def try_case(good: Path, number: int, *, seed: int, seconds: float = SECONDS) -> Outcome:
    """Run one case in a copy of the good folder."""
    draw = random.Random(f"{seed}:{number}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "case"
        shutil.copytree(good, root)
        kind, command, how, line = spoil(root, number, draw)
        before, began, code, lost = content(root), time.perf_counter(), None, ""
        out, err = io.StringIO(), io.StringIO()
        logging.getLogger().handlers.clear()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), time_limit(seconds):
                code = cli.main(line)
        except TimeLimit:
            lost = f"took more than {seconds:.0f} s"
        except BaseException as error:  # a traceback, or an exit that is no return
            lost = f"{type(error).__name__}: {error}"
        lost = lost or verdict(code, out.getvalue(), err.getvalue(), before, content(root))
        words = err.getvalue().strip().replace(str(root), "")
        return Outcome(kind, command, how, code, time.perf_counter() - began, words[-400:], lost)


def verdict(code: int | None, out: str, err: str, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """Return why an end is not as it should be, or nothing."""
    if code == 0:
        return ""
    if code != 2:
        return f"exit code {code}"
    if "Traceback" in err or not all(line.startswith("loraprune: ") for line in err.splitlines()) or not err:
        return "no plain line on stderr"
    if out:
        return "a result on stdout"
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"left or changed {changed[:3]}" if changed else ""


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return counts by kind and everything that did not hold."""
    by_kind: dict[str, Counter[str]] = {}
    for one in outcomes:
        end = "lost" if one.lost else {0: "still good", 2: "refused"}[one.code or 0]
        by_kind.setdefault(one.kind, Counter())[end] += 1
    return {
        "cases": len(outcomes),
        "lost": sum(bool(one.lost) for one in outcomes),
        "refused": sum(one.code == 2 and not one.lost for one in outcomes),
        "still_good": sum(one.code == 0 and not one.lost for one in outcomes),
        "altered_weights_that_nobody_can_know": sum(one.kind == "weights" and one.code == 0 for one in outcomes),
        "commands": dict(Counter(one.command for one in outcomes)),
        "by_kind": {kind: dict(counts) for kind, counts in by_kind.items()},
        "slowest_seconds": max(one.seconds for one in outcomes),
        "not_held": [f"{number}: {one.command}, {one.kind}: {one.damage}: {one.lost}: {one.error}"
                     for number, one in enumerate(outcomes) if one.lost],
    }  # fmt: skip


def run(cases: int, seed: int, report: Callable[[int, Outcome], None] | None = None) -> dict[str, Any]:
    """Run the first `cases` cases of a seed and return their summary; cells of a grid that is still good are not run."""
    taken = resource.getrlimit(resource.RLIMIT_AS)
    compare_run.run_cells = lambda *_, **__: None
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good"
        good.mkdir()
        make_good(good)
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
        if pages:
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, taken[1]))
        outcomes = []
        for number in range(cases):
            outcomes.append(try_case(good, number, seed=seed))
            if report:
                report(number, outcomes[-1])
    return {"seed": seed, "seconds_allowed": SECONDS, **summary(outcomes)}


def main() -> None:
    """Run all cases and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=560)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    def report(number: int, one: Outcome) -> None:
        if one.lost or one.seconds > 20:
            print(
                f"{number}: {one.command}, {one.kind}: {one.damage}: {one.lost} ({one.seconds:.1f} s): {one.error}",
                flush=True,
            )

    result = run(options.cases, options.seed, report)
    from benchmarks.common import write

    write("torture_inputs", result)
    print({name: result[name] for name in ("cases", "refused", "still_good", "lost")})
    sys.exit(result["lost"] > 0)


if __name__ == "__main__":
    main()
