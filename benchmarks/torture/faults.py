"""Faults on the way: full and read-only disks, torn and altered checkpoints, signals, NaN, vanished data."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.torture import children
from benchmarks.torture.cases import Row, command, damage, digests, inputs, tree

from loraprune.training.guarded_trainer import GuardedTrainer
from loraprune.training.resume import keeper

ROUNDS = 6
PLAIN = ["--save", "1"]


def run(root: Path, *, short: bool) -> list[Row]:
    """Return a row for every kind of fault."""
    place = Place(root)
    faults: dict[str, Callable[[], list[str]]] = {
        "torn or altered checkpoint": place.torn,
        "SIGINT or SIGTERM": place.signalled,
        "NaN in a step or two": place.nan_sometimes,
        "NaN in every step": place.nan_always,
        "data file vanishes": place.vanished,
        "disk full": place.full,
        "read-only output": place.read_only,
        "other options": place.other_options,
    }
    rows = []
    for name, fault in faults.items():
        row = Row("faults", name)
        for _ in range(1 if short else ROUNDS):
            place.clean()
            row.tried += 1
            row.losses += fault()
        rows.append(row)
        print(f"{row.case}: {row.tried} tried, {len(row.losses)} lost", flush=True)
    return rows


class Place:
    """A run to disturb, and what it gives when nobody does."""

    def __init__(self, root: Path) -> None:
        self.root, self.given, self.draw = root, inputs(root), random.Random(1)
        self.output, self.log = root / "place" / "out", root / "log"
        self.partial = self.output.with_name("out.partial")
        self.command = command(self.given, self.output, PLAIN)
        self.clean()
        self.seconds = self._run(self.command).seconds
        self.expected = digests(self.output)

    def clean(self) -> None:
        """Leave nothing of the last fault."""
        shutil.rmtree(self.output.parent, ignore_errors=True)
        self.output.parent.mkdir()

    def torn(self) -> list[str]:
        """Damage the newest checkpoint: it is named and passed by for the one before."""
        step = self.draw.randint(2, 11)
        self._run(self.command, prepare=lambda: stop_after(step))
        newest = sorted(self.partial.glob("step-*"))[-1]
        what = damage(newest, self.draw)
        ended = self._run([*self.command, "--resume"])
        named = [] if f"{newest} is passed by" in ended.stderr else [f"{what}: not told"]
        return named + self._same(what)

    def signalled(self) -> list[str]:
        """Send a signal while it trains: exit code 130 or 143, and what was there before stays."""
        number = self.draw.choice((signal.SIGINT, signal.SIGTERM))
        self._put_old()
        before = tree(self.output)
        step = self.draw.randint(1, 11)
        ended = self._run([*self.command, "--overwrite", "--save", "100"], prepare=lambda: signal_after(step, number))
        lost = [] if ended.code == 128 + number else [f"exit code {ended.code}"]
        lost += [] if tree(self.output) == before else ["what stood there before is gone"]
        lost += [] if sorted(self.partial.glob("step-*")) else ["no checkpoint was written"]
        self._run([*self.command, "--overwrite", "--resume"])
        return lost + self._same("signal")

    def nan_sometimes(self) -> list[str]:
        """Let the loss of two steps be NaN: both are told, and a resumed run gives the bytes of one that was not stopped."""
        steps = self.draw.sample(range(2, 12), 2)
        ended = self._run(self.command, prepare=lambda: poison(steps))
        whole = digests(self.output)
        lost = [] if ended.code == 0 and ended.stderr.count("is skipped") == 2 else [f"skips: {ended.stderr[-300:]}"]
        self.clean()
        self._run(self.command, prepare=lambda: (poison(steps), stop_after(6)))
        self._run([*self.command, "--resume"], prepare=lambda: poison(steps))
        return lost + ([] if digests(self.output) == whole else ["other bytes after resume"])

    def nan_always(self) -> list[str]:
        """Let every loss from a step on be NaN: an end with a reason, a checkpoint, and no result."""
        first = self.draw.randint(5, 7)
        ended = self._run(self.command, prepare=lambda: poison(range(first, 99)))
        lost = (
            []
            if ended.code == 2 and "the loss is nan" in ended.stderr
            else [f"code {ended.code}: {ended.stderr[-300:]}"]
        )
        lost += [] if sorted(self.partial.glob("step-*")) else ["no checkpoint"]
        return lost + (["a result all the same"] if self.output.exists() else [])

    def vanished(self) -> list[str]:
        """Take the data away before a run is resumed: one line, the checkpoints stay."""
        self._run(self.command, prepare=lambda: stop_after(4))
        before = tree(self.partial)
        text = self.given / "text.txt"
        text.rename(text.with_suffix(".away"))
        try:
            ended = self._run([*self.command, "--resume"])
        finally:
            text.with_suffix(".away").rename(text)
        lost = [] if ended.code == 2 and "text.txt" in ended.stderr else [f"code {ended.code}: {ended.stderr[-300:]}"]
        lost += [] if tree(self.partial) == before else ["checkpoints changed"]
        self._run([*self.command, "--resume"])
        return lost + self._same("vanished")

    def full(self) -> list[str]:
        """Give it a disk with too little room: no result, or a whole one; with more room --resume ends as it should."""
        size = self.draw.randint(30, 600)
        with Mounted(self.output.parent, f"size={size}k") as disk:
            ended = self._run(self.command)
            if ended.code == 0:
                return self._same(f"{size} KiB were enough, but")
            lost = ["a result all the same"] if self.output.exists() else []
            lost += (
                []
                if ended.code == 2 and "Traceback" not in ended.stderr
                else [f"code {ended.code}: {ended.stderr[-300:]}"]
            )
            disk.remount("size=64m")
            self._run([*self.command, "--resume"])
            return lost + self._same(f"{size} KiB")

    def read_only(self) -> list[str]:
        """Write to a disk that is read-only: one line, nothing lost."""
        self._put_old()
        with Mounted(self.output.parent, "size=64m") as disk:
            self._put_old()
            before = tree(self.output.parent)
            disk.remount("ro")
            ended = self._run([*self.command, "--overwrite"])
            lost = (
                []
                if ended.code == 2 and "cannot be written" in ended.stderr
                else [f"code {ended.code}: {ended.stderr[-300:]}"]
            )
            return lost + ([] if tree(self.output.parent) == before else ["something changed"])

    def other_options(self) -> list[str]:
        """Resume with another option: one line that names it, the checkpoints stay."""
        self._run(self.command, prepare=lambda: stop_after(4))
        before = tree(self.partial)
        name, value = self.draw.choice((("--lr", "0.5"), ("--seed", "7"), ("--decay", "0.1"), ("--shrink", "false")))
        ended = self._run([*self.command, "--resume", name, value])
        lost = [] if ended.code == 2 and f"{name} " in ended.stderr else [f"code {ended.code}: {ended.stderr[-300:]}"]
        return lost + ([] if tree(self.partial) == before else ["checkpoints changed"])

    def _run(self, arguments: list[str], prepare: Callable[[], object] = lambda: None) -> children.Ended:
        return children.run(arguments, self.log, prepare=prepare)

    def _put_old(self) -> None:
        self.output.mkdir()
        (self.output / "report.json").write_text("{}")
        (self.output / "notes.txt").write_text("what stood there before")

    def _same(self, where: str) -> list[str]:
        return [] if digests(self.output) == self.expected else [f"{where}: other bytes"]


class Mounted:
    """A small disk of its own at a folder; needs the right to mount."""

    def __init__(self, folder: Path, options: str) -> None:
        self.folder, self.options = folder, options

    def __enter__(self) -> Mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", str(self.folder)], check=True)
        return self

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)


def stop_after(step: int) -> None:
    """Kill this process when the checkpoint of a step is written."""
    real = keeper.finish_checkpoint

    def stopping(folder: Path, about: dict[str, object]) -> Path:
        written = real(folder, about)
        if about["step"] == step:
            signal.raise_signal(signal.SIGKILL)
        return written

    keeper.finish_checkpoint = stopping


def poison(steps: range | list[int]) -> None:
    """Let the loss of some optimiser steps be NaN."""
    real = GuardedTrainer.compute_loss

    def poisoned(self: GuardedTrainer, *arguments: object, **options: object) -> object:
        loss = real(self, *arguments, **options)
        return loss * torch.nan if self.state.global_step + 1 in steps else loss

    GuardedTrainer.compute_loss = poisoned


def signal_after(step: int, number: int) -> None:
    """Send a signal to this process while it computes a step."""
    real = GuardedTrainer.compute_loss

    def signalling(self: GuardedTrainer, *arguments: object, **options: object) -> object:
        if self.state.global_step + 1 == step:
            signal.raise_signal(number)
        return real(self, *arguments, **options)

    GuardedTrainer.compute_loss = signalling
