"""Imports point one way, foreign libraries have one owner, and nothing slow is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from loraprune.commands import parser

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"

# A module imports only from levels above its own line. A package stands for all its modules, which import each other without a circle.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("errors", "groups"),
    ("plan", "registry", "runtime"),
    ("config", "families"),
    ("models",),
    ("data", "scoring"),
    ("evaluation",),
    ("preflight", "pruning"),
    ("training",),
    ("reporting",),
    ("export", "rounds", "search", "merge"),
    ("sizes",),
    ("pipeline",),
    ("commands",),
    ("functions", "cli"),
    ("api",),
    ("axolotl", "__main__"),
)
FREE = ("",)  # the package itself, which imports on demand
SHIPPED = "models.layerwise.modeling_loraprune"
"""copied into folders that are loaded where this package is not installed"""

WITHOUT_TORCH = (
    "runtime",
    "config",
    "commands",
    "pruning",
    "errors",
    "runtime.hub",
    "runtime.held",
    "registry",
    "groups",
    "families",
    "families.depth",
    "plan",
    "pruning.schedule",
    "config.sparsity",
    "pruning.allocation",
    "config.base",
    "config.drop",
    "config.sizes",
    "commands.parser_errors",
    "runtime.output",
    "models.folder",
    "commands.config_file",
    "commands.names",
    "config.columns",
    "config.deployment",
    "models.known_shapes",
    "runtime.launch",
    "config.pruning",
    "config.training",
    "config.recipes",
    "commands.compare.grid",
    "commands.compare.settings",
    "config.commands",
    "config.describe",
    "config.export",
    "runtime.run_file",
    "commands.verbs",
    "commands.help",
    "config.values",
    "runtime.interrupts",
    "commands.parser",
    "cli",
)
PRINTING = {"cli", "commands.tables"}


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
    top = name.partition(".")[0]
    return top if any(top in level for level in LEVELS) else None


def part_of(name: str) -> str:
    """Return the module or package right below one of LEVELS that a module belongs to."""
    return ".".join(name.split(".")[:2])


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


def test_imports_point_down() -> None:
    assert [wrong for name, tree in MODULES.items() if name not in FREE for wrong in upward(name, tree)] == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("groups", "from loraprune.plan import Plan"),
        ("data.load", "from loraprune import scoring"),
        ("families.llama", "import loraprune.models.adapters"),
        ("scoring.criteria.lora", "def late():\n    from loraprune.pruning.pruner import Pruner"),
        ("pruning.pruner", "from loraprune import LoRAPruneConfig"),
    ],
)
def test_an_import_that_points_up_or_sideways_is_seen(name: str, line: str) -> None:
    assert len(upward(name, ast.parse(line))) == 1


def circle(trees: Mapping[str, ast.Module]) -> list[str]:
    """Return modules that import each other in a circle, if there are any."""
    found = {}
    for name, tree in trees.items():
        targets = [target.partition(".")[2] for target in imported(tree) if target.partition(".")[0] == "loraprune"]
        owners = {target if target in trees else target.rpartition(".")[0] for target in targets}
        found[name] = owners - {"", name}
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return [str(name) for name in error.args[1]]
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle({name: tree for name, tree in MODULES.items() if name not in FREE}) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("pruning.surgery", "from loraprune.pruning.pruner import Pruner"),
        ("models.quantised.forms", "def late():\n    from loraprune.models import adapters"),
    ],
)
def test_a_circle_inside_a_package_is_seen(name: str, line: str) -> None:
    assert name in circle({**MODULES, name: ast.parse(line)})


def test_the_shipped_modelling_code_imports_nothing_of_this_package() -> None:
    assert [target for target in imported(MODULES[SHIPPED]) if target.partition(".")[0] == "loraprune"] == []


@pytest.mark.parametrize("verb", parser.COMMANDS)
def test_what_the_command_line_calls_by_name_stands_below_it(verb: str) -> None:
    command = parser.COMMANDS[verb]
    for target in (command.function, f"commands.tables.{command.show}"):
        module, function = target.split(":")
        assert level_of(str(home(module))) < level_of("cli")
        defined = [node.name for node in MODULES[module].body if isinstance(node, ast.FunctionDef)]
        assert function in defined


def test_only_adapters_sees_the_inside_of_peft() -> None:
    users = {part_of(name) for name, tree in MODULES.items() for target in imported(tree) if target.startswith("peft.")
             and target.removeprefix("peft.") not in ("PeftModel", "LoraConfig", "get_peft_model")}  # fmt: skip
    assert users == {"models.adapters"}


def test_only_plotting_sees_matplotlib_and_only_when_it_draws() -> None:
    users = {name for name, tree in MODULES.items() for target in imported(tree) if target.startswith("matplotlib")}
    assert users == {"reporting.plotting"}
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
    assert {part_of(name) for name in users} == PRINTING


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


HEAVY = "[name for name in ('torch', 'transformers', 'peft', 'datasets', 'accelerate') if name in sys.modules]"


@pytest.mark.parametrize(
    "code",
    [
        "import loraprune",
        "\n".join(f"import loraprune.{name}" for name in WITHOUT_TORCH),
        "from loraprune.commands.help import answer\nassert answer(['--help'])",
        "from loraprune.commands.help import answer\nassert answer(['prune', '--help-all'])\nassert 'jsonargparse' not in sys.modules",
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
