"""Two processes end together: by errors, signals, a lost process; and agree on what they skip and go on from."""

from __future__ import annotations

import hashlib
import math
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from loraprune import cli
from loraprune.training.resume import keeper
from tests.pipeline.cases import read_report
from tests.runtime.distributed.processes import FSDP2, Ended, command, die, during_step, run

STEPS = 8
FIGURES = ("evaluations", "kept_step", "steps")
LAUNCHES: Mapping[str, Mapping[str, str]] = {"DDP": {}, "FSDP2": FSDP2}


def prune(given: Path, output: Path, *more: str) -> list[str]:
    return [
        "prune", "--model", str(given / "model"), "--data", str(given / "text.txt"), "--output", str(output), "--steps", str(STEPS),
        "--batch", "2", "--length", "32", "--lr", "1e-3", "--rank", "4", "--device", "cpu", "--html", "false", "--save", "2",
        "--eval-every", "1", "--patience", "2", "--cooldown", "0.5", "--local", "0", "--calibration", "512", *more,
    ]  # fmt: skip


def run_with(
    arguments: list[str], folder: Path, prepare: Callable[[int], object], *, launcher: Mapping[str, str] | None = None
) -> Ended:
    """Run a command line in two processes that are prepared first."""

    def work(rank: int) -> int:
        prepare(rank)
        return cli.main(arguments)

    return run(work, folder, launcher=launcher)


def digest(output: Path) -> str:
    return hashlib.sha256((output / "model.safetensors").read_bytes() + (output / "plan.json").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Return what two processes leave that nobody disturbs, by launch."""
    found = {}
    for name, launcher in LAUNCHES.items():
        folder = tmp_path_factory.mktemp(name)
        ended = run(command(prune(given, folder / "out")), folder, launcher=launcher)
        assert ended.codes == [0, 0], ended.stderr
        found[name] = folder / "out"
    return found


def test_a_signal_to_one_stops_both_at_the_same_step_and_both_go_on(
    given: Path, undisturbed: Mapping[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def prepare(rank: int) -> None:
        if rank == 1:
            during_step(5, lambda: signal.raise_signal(signal.SIGTERM))

    ended = run_with(prune(given, output), tmp_path, prepare)
    assert ended.codes == [143, 143], ended.stderr
    assert "a checkpoint of step 5 is written" in ended.stderr[0]
    assert "interrupted" not in ended.stderr[1]
    one = run(command(prune(given, output, "--resume")), tmp_path, count=1)
    assert one.codes == [2]
    assert "was made by 2 processes, not 1" in one.stderr[0]
    assert run(command(prune(given, output, "--resume")), tmp_path).codes == [0, 0]
    assert digest(output) == digest(undisturbed["DDP"])


@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_lost_process_ends_the_other_and_leaves_nothing_half_written(
    launch: str, given: Path, undisturbed: Mapping[str, Path], tmp_path: Path
) -> None:
    output, launcher, again = tmp_path / "out", LAUNCHES[launch], prune(given, tmp_path / "out", "--resume")
    ended = run_with(
        prune(given, output), tmp_path, lambda rank: during_step(7, die) if rank == 1 else None,
        launcher=launcher,
    )  # fmt: skip
    assert ended.codes == [1, -signal.SIGKILL], ended.stderr
    assert "process 0 of 2 failed" in ended.stderr[0]
    assert not output.exists()
    left = sorted(path.name for path in (tmp_path / "out.partial").iterdir())
    assert left == ["lock", "run.json", "step-00000004", "step-00000006"]
    other = run(command(again), tmp_path, launcher=next(each for each in LAUNCHES.values() if each != launcher))
    assert other.codes == [2, 2]
    assert "FSDP, not with" in other.stderr[0]
    resumed = run(command(again), tmp_path, launcher=launcher)
    assert resumed.codes == [0, 0], resumed.stderr
    assert "continuing from" in resumed.stderr[0]
    assert digest(output) == digest(undisturbed[launch])
    mine, theirs = read_report(output), read_report(undisturbed[launch])
    assert {name: mine[name] for name in FIGURES} == {name: theirs[name] for name in FIGURES}


def test_of_checkpoints_of_parts_an_unfinished_and_a_torn_one_are_passed_by(
    given: Path, undisturbed: Mapping[str, Path], tmp_path: Path
) -> None:
    def die_before_step_6_is_sealed(rank: int) -> None:
        real = keeper.finish_checkpoint

        def dying(folder: Path, about: dict[str, object]) -> Path:
            if about["step"] == 6:
                die()
            return real(folder, about)

        if rank == 0:
            keeper.finish_checkpoint = dying

    output, partial = tmp_path / "out", tmp_path / "out.partial"
    ended = run_with(prune(given, output), tmp_path, die_before_step_6_is_sealed, launcher=FSDP2)
    assert ended.codes == [-signal.SIGKILL, 1], ended.stderr
    assert not output.exists()
    weights = partial / "step-00000004" / keeper.ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    resumed = run(command(prune(given, output, "--resume")), tmp_path, launcher=FSDP2)
    assert resumed.codes == [0, 0], resumed.stderr
    assert f"{weights.parent} is skipped" in resumed.stderr[0]
    assert "step-00000002" in resumed.stderr[0]
    assert digest(output) == digest(undisturbed["FSDP2"])


def test_a_step_without_numbers_in_one_process_is_skipped_in_both(given: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ended = run_with(
        prune(given, output), tmp_path, lambda rank: during_step(3, lambda: math.nan) if rank == 1 else None
    )
    assert ended.codes == [0, 0], ended.stderr
    assert ended.stderr[0].count("was skipped") == 1
    assert "was skipped" not in ended.stderr[1]
    assert [skip["step"] for skip in read_report(output)["skipped_steps"]] == [3]


@pytest.mark.parametrize("wrong", [["--data", "no-such.txt"], ["--output", "{given}"]])
def test_wrong_input_is_told_once_and_ends_both(wrong: list[str], given: Path, tmp_path: Path) -> None:
    ended = run(command(prune(given, tmp_path / "out", *(word.format(given=given) for word in wrong))), tmp_path)
    assert ended.codes == [2, 2], ended.stderr
    assert ended.stderr[0].count("loraprune: error:") == 1
    assert "error" not in ended.stderr[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "WORLD_SIZE": "2"}, "--fsdp_version 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "--num_processes"),
    ],
)
def test_launches_that_cannot_work_are_refused_before_anything_is_read(
    launcher: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["prune", "--model", "missing", "--data", "missing", "--output", "out"]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1


def test_what_one_process_does_is_refused_to_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["evaluate", "--model", "missing", "--data", "missing"]) == 2
    assert "2 processes: evaluate" in capsys.readouterr().err
