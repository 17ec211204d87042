"""A BERT or ModernBERT, trained here on texts and labelled ones, pruned to 50 % by several criteria over several seeds.

    python benchmarks/encoder.py --work build/encoder

First a vocabulary and, with --pretraining, a masked language model are trained on the texts from scratch, then all weights are
tuned on the task: that is the dense model. Each criterion prunes it while LoRA tunes it, and the accuracy of both stands in the table of
`python benchmarks/tables.py`. Models and checkpoints of the training are kept in --work, finished runs in the result file, so that
the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import accuracy
from helpers.common import SHARED
from transformers import AutoConfig, AutoModelForMaskedLM, BertTokenizer, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from loraprune.evaluation.tasks import Prepared, Request, tasks
from loraprune.models.loading import load_with_head
from loraprune.runtime.device import choose_device

TEXTS = ("text/imdb/labelled-8000.jsonl",)
"""film reviews, which the sentences of SST-2 come from too"""
CHECKPOINTS = 10
"""checkpoints that a training leaves for the case that it is stopped"""


def fit(model: Any, data: Prepared, folder: Path, *, steps: int, lr: float, options: argparse.Namespace) -> None:
    """Train all weights of a model, from its last checkpoint on if there is one, and save it; the folder appears when it is whole."""
    running = folder.with_name(f"{folder.name}.running")
    arguments = TrainingArguments(
        output_dir=str(running), max_steps=steps, per_device_train_batch_size=options.batch, learning_rate=lr,
        lr_scheduler_type="cosine", warmup_steps=steps // 20, weight_decay=0.01, save_steps=max(1, steps // CHECKPOINTS),
        save_total_limit=1, logging_steps=max(1, steps // 20), report_to=[], remove_unused_columns=False, seed=0,
        use_cpu=options.device == "cpu", train_sampling_strategy="group_by_length", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data.training, data_collator=data.collator)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(running)) if running.is_dir() else None)
    whole = running / "whole"
    model.save_pretrained(whole)
    data.processor.save_pretrained(whole)
    whole.rename(folder)
    shutil.rmtree(running)


def request(model: Path, data: str, options: argparse.Namespace, *, judge: str | None = None) -> Request:
    """Return a task's request for a model in a folder."""
    return Request(str(model), AutoConfig.from_pretrained(model), data, judge, options.length)


def read_texts(paths: list[Path]) -> list[str]:
    """Return the texts of files: of a .jsonl the column `text`, of others every line."""
    found: list[str] = []
    for path in paths:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        found += [json.loads(line)["text"] if path.suffix == ".jsonl" else line for line in lines]
    return found


def pretrain(folder: Path, options: argparse.Namespace) -> None:
    """Train a vocabulary, and a masked language model from scratch unless no steps are asked for, on all texts."""
    start, texts = folder.with_name("random"), read_texts(options.texts)
    tokenizer = BertTokenizer().train_new_from_iterator(texts, options.vocabulary_size)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # one segment, and ModernBERT knows no segments
    wide = 4 if options.family == "bert" else 2.5  # gated: three projections instead of two
    special = ("pad", "cls", "sep", "bos", "eos")
    config = AutoConfig.for_model(
        options.family, vocab_size=len(tokenizer), hidden_size=options.hidden, num_hidden_layers=options.layers,
        num_attention_heads=options.heads, intermediate_size=int(wide * options.hidden), max_position_embeddings=512,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in special},
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    if options.pretraining == 0:
        start.rename(folder)
        return
    file = start / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    data = tasks.get("masked-lm").prepare(request(start, str(file), options))
    fit(model, data, folder, steps=options.pretraining, lr=options.pretraining_lr, options=options)


def tune(folder: Path, pretrained: Path, options: argparse.Namespace) -> None:
    """Tune all weights on the task: the dense model."""
    task = tasks.get("sequence-classification")
    data = task.prepare(request(pretrained, options.data, options, judge=options.eval))
    model, _ = load_with_head(
        str(pretrained), task.head, device=choose_device(options.device), values=data.values, new=task.new
    )
    fit(model, data, folder, steps=options.tuning, lr=options.tuning_lr, options=options)


def once(folder: Path, make: Callable[..., None], *arguments: Any) -> Path:
    """Make a folder unless it is there."""
    if not folder.is_dir():
        make(folder, *arguments)
    return folder


def parse() -> argparse.Namespace:
    """Read the options; the defaults are for minutes of one CPU core, which are too few for pre-training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = SHARED / "data"
    parser.add_argument("--work", type=Path, default=Path("build/encoder"))
    parser.add_argument("--texts", type=Path, nargs="+", default=[data / name for name in TEXTS])
    parser.add_argument("--vocabulary-size", type=int, default=4096)
    parser.add_argument("--data", default=str(data / "glue" / "SST-2"), help="labelled texts")
    parser.add_argument("--eval", help="labelled texts to evaluate on, where the data have no split for it")
    parser.add_argument("--family", choices=("bert", "modernbert"), default="bert")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pretraining", type=int, default=0, help="steps from scratch; 0 for none")
    parser.add_argument("--pretraining-lr", type=float, default=1e-3)
    parser.add_argument("--tuning", type=int, default=2000, help="steps of all weights on the task")
    parser.add_argument("--tuning-lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=100, help="steps of pruning and tuning")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--kinds", default="all", help="kinds of units that may go")
    accuracy.add_options(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default="bert-sst2", help="of the result file")
    return parser.parse_args()


def main() -> None:
    """Go through all stages, each skipped where its folder is there already."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    pretrained = once(options.work / "pretrained", pretrain, options)
    dense = once(options.work / "dense", tune, pretrained, options)
    shared = {
        name: getattr(options, name) for name in ("data", "eval", "steps", "batch", "length", "lr", "rank", "device")
    }
    told = [
        "family", "vocabulary_size", "hidden", "layers", "heads", "pretraining", "pretraining_lr", "tuning", "tuning_lr",
    ]  # fmt: skip
    facts = {name: getattr(options, name) for name in told} | {"texts": [path.name for path in options.texts]}
    accuracy.measure(
        options.name, dense, common=shared, pruning={"kinds": options.kinds}, grid=accuracy.grid(options), work=options.work,
        facts=facts,
    )  # fmt: skip


if __name__ == "__main__":
    main()
