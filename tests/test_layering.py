"""Imports point one way, foreign libraries have one owner, and nothing slow is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraprune.commands import parser

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"

# A module imports only from levels above its own line. A package stands for all its files.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("errors", "names", "amounts", "layerwise.modeling_loraprune"),
    ("launch", "sharding"),
    ("processes",),
    (
        "registry",
        "complaints",
        "renamed",
        "measured",
        "metrics",
        "stored",
        "heads",
        "groups",
        "schedule",
        "options",
        "output",
        "folder",
        "runfile",
        "clear_errors",
        "memory",
        "machine",
        "plotting",
        "recipes",
        "demo.stdlib",
        "layerwise.register",
        "kernels",
        "sparsity.pattern",
        "spool",
        "resume.interrupts",
        "resume.atomic",
        "resume.randomness",
        "guard",
    ),
    ("quantised",),
    ("pruning",),
    ("plan", "config", "families", "adapters", "data", "loading", "published", "resume.workspace"),
    ("compare.grid", "compare.correlation", "images", "depth"),
    (
        "settings",
        "compare.settings",
        "compare.summary",
        "allocation",
        "criteria",
        "importance",
        "masking",
        "surgery",
        "shell",
        "evaluate",
        "resume.files",
        "html.folder",
        "html.labels",
    ),
    ("export_options", "scoring", "layerwise.save", "tasks", "watching", "completions", "harness", "html.heat"),
    (
        "resume.keeper",
        "compensation",
        "teachers",
        "verify",
        "benchmark",
        "checkpoint",
        "sparsity.masks",
        "sparsity.scores",
        "sparsity.saved",
        "compare.plots",
        "html.figures",
        "inputs",
    ),
    ("blockwise", "distillation"),
    ("target",),
    (
        "card",
        "html.page",
        "showcase",
        "resume.run",
        "train",
        "pruner",
        "layerwise.padded",
        "sparsity.sparsifier",
        "compare.run",
    ),
    ("export", "push", "footprint"),
    ("job", "callback", "describe", "judge", "lineup", "report"),
    ("rounds", "fit"),
    ("api", "pipeline"),
    ("demo.run", "tables"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FREE = (
    "",
    "compare",
    "demo",
    "html",
    "layerwise",
    "resume",
    "sparsity",
)  # the package itself, which imports on demand, and packages without code

WITHOUT_TORCH = (
    "errors",
    "names",
    "registry",
    "groups",
    "families",
    "depth",
    "plan",
    "schedule",
    "sparsity.pattern",
    "allocation",
    "options",
    "complaints",
    "output",
    "folder",
    "runfile",
    "launch",
    "pruning",
    "config",
    "recipes",
    "compare.grid",
    "compare.settings",
    "settings",
    "export_options",
    "resume.interrupts",
    "commands",
    "cli",
)
PRINTING = {"cli", "tables"}


def modules(source: Path = SOURCE) -> dict[str, ast.Module]:
    """Return the syntax tree of every module, by its name below loraprune."""
    found = {}
    for path in sorted((source / "loraprune").rglob("*.py")):
        parts = path.relative_to(source / "loraprune").with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield every dotted name that a module imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide what is imported"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home(name: str) -> str | None:
    """Return the entry of LEVELS that a module below loraprune belongs to."""
    parts = name.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((prefix for prefix in prefixes if any(prefix in level for level in LEVELS)), None)


def level_of(entry: str) -> int:
    return next(place for place, level in enumerate(LEVELS) if entry in level)


def upward(name: str, tree: ast.Module) -> list[str]:
    """Return a sentence for every import of a module that does not point down."""
    own = home(name)
    assert own is not None
    wrong = []
    for target in imported(tree):
        if target.partition(".")[0] != "loraprune":
            continue
        other = home(target.partition(".")[2])
        if other is None:
            wrong.append(f"{name} imports {target}: name the module that owns it")
        elif other != own and level_of(other) >= level_of(own):
            wrong.append(f"{name} (level {level_of(own)}) imports {other} (level {level_of(other)})")
    return wrong


MODULES = modules()


def test_every_module_has_exactly_one_level() -> None:
    assert [name for name in MODULES if name not in FREE and home(name) is None] == []
    entries = [entry for level in LEVELS for entry in level]
    assert len(entries) == len(set(entries))
    assert [entry for entry in entries if entry not in MODULES] == []


@pytest.mark.parametrize("name", [name for name in MODULES if name not in FREE])
def test_imports_point_down(name: str) -> None:
    assert upward(name, MODULES[name]) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("groups", "from loraprune.plan import Plan"),
        ("masking", "from loraprune import surgery"),
        ("families.llama", "import loraprune.models.adapters"),
        ("criteria.lora", "def late():\n    from loraprune.pruning.pruner import Pruner"),
        ("pruner", "from loraprune import LoRAPruneConfig"),
    ],
)
def test_an_import_that_points_up_or_sideways_is_seen(name: str, line: str) -> None:
    assert len(upward(name, ast.parse(line))) == 1


@pytest.mark.parametrize("verb", parser.COMMANDS)
def test_what_the_command_line_calls_by_name_stands_below_it(verb: str) -> None:
    command = parser.COMMANDS[verb]
    for target in (command.function, command.show):
        module, function = target.split(":")
        assert level_of(str(home(module))) < level_of("cli")
        defined = [node.name for node in MODULES[module].body if isinstance(node, ast.FunctionDef)]
        assert function in defined


def test_only_adapters_sees_the_inside_of_peft() -> None:
    users = {home(name) for name, tree in MODULES.items() for target in imported(tree) if target.startswith("peft.")
             and target.removeprefix("peft.") not in ("PeftModel", "LoraConfig", "get_peft_model")}  # fmt: skip
    assert users == {"adapters"}


def test_only_plotting_sees_matplotlib_and_only_when_it_draws() -> None:
    users = {name for name, tree in MODULES.items() for target in imported(tree) if target.startswith("matplotlib")}
    assert users == {"plotting"}
    assert (
        python(
            "import sys, loraprune.commands.compare.plots, loraprune.reporting.plotting; assert 'matplotlib' not in sys.modules"
        ).returncode
        == 0
    )


def test_only_the_command_line_and_its_tables_print() -> None:
    users = set()
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func
                word = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
                users |= {name} if word == "print" else set()
            elif isinstance(node, ast.Attribute) and node.attr == "stdout":
                users.add(name)
    assert {home(name) for name in users} == PRINTING


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


HEAVY = "[name for name in ('torch', 'transformers', 'peft', 'datasets', 'accelerate') if name in sys.modules]"


@pytest.mark.parametrize(
    "code",
    [
        "import loraprune",
        "\n".join(f"import loraprune.{name}" for name in WITHOUT_TORCH),
        "from loraprune.commands.parser import parse\ntry: parse(['--help'])\nexcept SystemExit as end: assert end.code == 0",
        "from loraprune.commands.parser import parse\ntry: parse(['prune', '--help'])\nexcept SystemExit as end: assert end.code == 0",
        "import loraprune\nassert loraprune.LoRAPruneConfig().ratio == 0.5\nassert loraprune.Span('q', 'out', 1).offset == 0",
    ],
)
def test_what_answers_at_once_does_not_import_torch(code: str) -> None:
    done = python(f"import sys\n{code}\nprint({HEAVY}, file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_the_command_answers_help_on_stdout() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "loraprune", "--help"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in parser.COMMANDS)
    assert not [line for line in done.stderr.splitlines() if line.rpartition("|")[2].strip() == "torch"]
