"""Any options that are accepted survive their file, and any that are not are refused in whole sentences."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loraprune import cli
from loraprune.commands import parser
from loraprune.config.training import PruneConfig, as_dict
from loraprune.errors import ConfigError
from loraprune.pruning.schedule import ScheduleName

NAMED = st.text("abcé _-:#'\"{}[]&*!|>%@`1\n", min_size=1, max_size=12).filter(str.strip)
WORDS = st.sampled_from(["#x", "~", "yes", "null and void", "0x10", "2:4", "[a", "a: b", "&a", "!x", "- "])
"""what YAML takes for something else than a text"""
FRACTION = st.floats(0, 0.45)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "data": NAMED,
    "eval": st.none() | NAMED | WORDS, "task": st.none() | WORDS,
    "ratio": FRACTION, "steps": st.none() | st.integers(1, 10**6),
    "lr": st.floats(1e-12, 10), "clip": st.floats(0, 1e6), "seed": st.integers(0, 2**32 - 1), "rank": st.integers(1, 4096),
    "alpha": st.floats(1e-6, 1e6), "dropout": FRACTION, "decay": FRACTION, "warmup": FRACTION, "cooldown": FRACTION,
    "schedule": st.sampled_from(get_args(ScheduleName)), "power": st.sampled_from([1, 2]), "normalize": st.booleans(),
    "interval": st.none() | st.integers(1, 1000), "round": st.integers(1, 512), "epochs": st.floats(1e-3, 1e3),
    "parameters": st.none() | st.sampled_from(["600M", "1.2B", "75k", "1000000"]), "criterion": st.sampled_from(["lora", "no"]),
}  # fmt: skip
OUTPUT = str(Path(tempfile.gettempdir()) / "no such folder" / "out")


@given(
    st.fixed_dictionaries({"data": NAMED}, optional={name: values for name, values in GOOD.items() if name != "data"})
)
@settings(max_examples=60)
def test_options_survive_run_yaml_on_their_way_through_the_command_line(changes: dict[str, Any]) -> None:
    if changes.get("parameters"):
        changes.pop("ratio", None)  # two targets are refused
    config = PruneConfig(model="org/name", output=OUTPUT, **changes)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(yaml.safe_dump(as_dict(config), sort_keys=False), encoding="utf-8")
        parsed = parser.parse(["prune", "--config", str(file)])[1].as_dict()
    again = PruneConfig(**{field.name: parsed[field.name] for field in fields(PruneConfig)})
    assert again == config


WHOLE = [field.name for field in fields(PruneConfig) if field.type in ("int", "int | None")]
FLOATS = [field.name for field in fields(PruneConfig) if field.type in ("float", "float | None")]
NUMBERS = (
    st.dictionaries(st.sampled_from(WHOLE), st.integers(), max_size=3),
    st.dictionaries(st.sampled_from(FLOATS), st.floats(), max_size=3),
)


@given(*NUMBERS)
def test_any_number_is_accepted_or_refused_in_a_sentence_that_names_its_option(
    whole: dict[str, int], floats: dict[str, float]
) -> None:
    changes = whole | floats
    try:
        PruneConfig(model="m", data="d", output=OUTPUT, **changes)
    except ConfigError as error:
        for problem in error.args:
            assert any(f"--{name.replace('_', '-')} " in problem.replace("_", "-") for name in changes), problem
            assert "\n" not in problem


def test_numbers_of_both_kinds_are_refused() -> None:
    """The control of the test above, which passes where nothing is refused."""
    with pytest.raises(ConfigError) as caught:
        PruneConfig(model="m", data="d", output=OUTPUT, rank=0, lr=-1.0)
    assert [name for name in ("--rank 0", "--lr -1.0") if any(name in problem for problem in caught.value.args)] == [
        "--rank 0", "--lr -1.0",
    ]  # fmt: skip


@given(
    st.sampled_from(["model", "data", "eval", "output", "task", "parameters", "reference"]),
    NAMED | WORDS | st.just("1e3"),
)
@settings(max_examples=20)
def test_a_text_is_what_was_typed(option: str, text: str) -> None:
    needed = {"model": "m", "data": "d", "output": OUTPUT} | {option: text}
    words = [f"--{name}={value}" for name, value in needed.items()]
    assert parser.parse(["compare", *words])[1][option] == text


def test_null_is_the_one_word_for_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("model: m\ndata: d\noutput: o\neval: e\nsteps: 3\n")
    parsed = parser.parse(["prune", "--config", str(tmp_path / "run.yaml"), "--eval", "null", "--steps", "null"])[1]
    assert (parsed["eval"], parsed["steps"]) == (None, None)
    for word in ("#5", "~"):
        assert cli.main(["prune", "--config", str(tmp_path / "run.yaml"), "--steps", word]) == 2
        assert f"--steps {word}: a whole number is needed" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["ratio", "seed", "overwrite", "schedule"])
def test_null_is_no_value_where_the_default_is_one(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(f"{name}: null\neval: null\n")
    flags = [part for key in ("model", "data", "output") if key != name for part in (f"--{key}", str(tmp_path / "x"))]
    assert cli.main(["prune", "--config", str(tmp_path / "run.yaml"), *flags]) == 2
    assert f"--{name} null: a value is needed" in capfd.readouterr().err
