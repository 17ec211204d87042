"""Several processes, forked from the one that runs the tests: importing torch would take longer than they do."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import trl  # noqa: F401  # imports what transformers would import lazily in every child
from accelerate.state import AcceleratorState

import loraprune.pipeline  # noqa: F401
from loraprune import cli
from loraprune.training.guarded_trainer import GuardedTrainer

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
"""what `accelerate launch --use_fsdp --fsdp_version 2` says"""
SECONDS = 600
"""after which a process that has not ended is taken for one that hangs"""


@dataclass(frozen=True)
class Ended:
    """How each process ended."""

    codes: list[int]
    stderr: list[str]


def variables(rank: int, count: int, port: int) -> dict[str, str]:
    """Return what torchrun says to each process."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def start(
    work: Callable[[int], int], folder: Path, *, count: int = 2, launcher: Mapping[str, str] | None = None
) -> list[int]:
    """Fork processes that do `work(rank)`, which returns an exit code, and return their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            code = 99
            try:
                for stream, name in ((1, "stdout"), (2, "stderr")):
                    handle = os.open(folder / f"{name}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                    os.dup2(handle, stream)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                logging.getLogger().handlers.clear()  # pytest's own, which would keep what is told
                signal.signal(signal.SIGINT, signal.default_int_handler)
                os.environ |= variables(rank, count, port) | dict(launcher or {})
                torch.set_num_threads(1)
                AcceleratorState._reset_state(reset_partial_state=True)  # what the parent knows of itself
                code = work(rank)
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def wait(children: Sequence[int], folder: Path) -> Ended:
    """Wait until all have ended; one that hangs is killed and says -9."""
    codes: dict[int, int] = {}
    end = time.monotonic() + SECONDS
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.05)
    texts = [(folder / f"stderr.{rank}").read_text(errors="replace") for rank in range(len(children))]
    return Ended([codes[child] for child in children], texts)


def run(
    work: Callable[[int], int], folder: Path, *, count: int = 2, launcher: Mapping[str, str] | None = None
) -> Ended:
    """Do some work in several processes."""
    return wait(start(work, folder, count=count, launcher=launcher), folder)


def command(arguments: Sequence[str]) -> Callable[[int], int]:
    """Return the work of carrying out a command line."""
    return lambda rank: cli.main(arguments)


def during_step(step: int, act: Callable[[], object]) -> None:
    """Let this process do something while it computes the loss of a step; what it returns is a factor of the loss."""
    real = GuardedTrainer.compute_loss

    def disturbed(self: GuardedTrainer, *arguments: object, **options: object) -> object:
        factor = act() if self.state.global_step + 1 == step else None
        loss = real(self, *arguments, **options)
        return loss if factor is None else loss * factor

    GuardedTrainer.compute_loss = disturbed  # type: ignore[method-assign]


def die() -> None:
    """End this process without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
