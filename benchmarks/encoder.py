"""A BERT, pre-trained here on texts and tuned on labelled ones, pruned to 50 % by several criteria over several seeds.

    python benchmarks/encoder.py --work build/encoder

First a masked language model is trained on the texts from scratch, then all its weights are tuned on the task: that is the dense
model. Each criterion prunes it while LoRA tunes it, and the accuracy of both stands in the table. Models, checkpoints of the
training and every finished run are kept in --work, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from transformers import AutoConfig, BertConfig, BertForMaskedLM, BertTokenizer, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from loraprune.config import PruneConfig
from loraprune.loading import load_with_head
from loraprune.machine import choose_device
from loraprune.pipeline import prune
from loraprune.tasks import Prepared, Request, tasks

TEXTS = ("text/imdb/labelled-8000.jsonl", "text/wikitext-2/train.txt", "text/c4/train.jsonl")
CHECKPOINTS = 10
"""checkpoints that a training leaves for the case that it is stopped"""


def fit(model: Any, data: Prepared, folder: Path, *, steps: int, lr: float, options: argparse.Namespace) -> None:
    """Train all weights of a model, from its last checkpoint on if there is one, and save it; the folder appears when it is whole."""
    running = folder.with_name(f"{folder.name}.running")
    arguments = TrainingArguments(
        output_dir=str(running), max_steps=steps, per_device_train_batch_size=options.batch, learning_rate=lr,
        lr_scheduler_type="cosine", warmup_steps=steps // 20, weight_decay=0.01, save_steps=max(1, steps // CHECKPOINTS),
        save_total_limit=1, logging_steps=max(1, steps // 20), report_to=[], remove_unused_columns=False, seed=0,
        use_cpu=options.device == "cpu",
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


def pretrain(folder: Path, options: argparse.Namespace) -> None:
    """Train a masked language model from scratch on all texts."""
    start = folder.with_name("random")
    tokenizer = BertTokenizer(str(options.vocabulary))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=options.hidden, num_hidden_layers=options.layers,
        num_attention_heads=options.heads, intermediate_size=4 * options.hidden, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(config)
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    texts = start / "texts.jsonl"
    with texts.open("w", encoding="utf-8") as file:
        for path in options.texts:
            lines = path.read_text(encoding="utf-8").split("\n")
            found = [json.loads(line)["text"] if path.suffix == ".jsonl" else line for line in lines if line.strip()]
            file.writelines(json.dumps({"text": text}) + "\n" for text in found)
    data = tasks.get("masked-lm").prepare(request(start, str(texts), options))
    fit(model, data, folder, steps=options.pretraining, lr=options.pretraining_lr, options=options)


def tune(folder: Path, pretrained: Path, options: argparse.Namespace) -> None:
    """Tune all weights on the task: the dense model."""
    task = tasks.get("sequence-classification")
    data = task.prepare(request(pretrained, options.data, options, judge=options.eval))
    model, _ = load_with_head(
        str(pretrained), task.head, device=choose_device(options.device), values=data.values, new=task.new
    )
    fit(model, data, folder, steps=options.tuning, lr=options.tuning_lr, options=options)


def run(folder: Path, dense: Path, options: argparse.Namespace, *, criterion: str, seed: int) -> dict[str, Any]:
    """Prune once, or read what an earlier call found."""
    report = folder / "report.json"
    if not report.is_file():
        prune(PruneConfig(
            model=str(dense), data=options.data, eval=options.eval, output=str(folder), ratio=options.ratio, criterion=criterion,
            seed=seed, steps=options.steps, batch=options.batch, length=options.length, lr=options.lr, rank=options.rank,
            device=options.device, overwrite=folder.exists(),
        ))  # fmt: skip
    values: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return values


def summarise(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the table: of every criterion the figure of each seed, their mean and sample deviation."""
    first = next(iter(found.values()))[0]
    metric = first["metric"]
    table = {}
    for criterion, reports in found.items():
        values = [report[metric]["pruned"] for report in reports]
        table[criterion] = {
            "values": values, "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None, "wall_seconds": [r["wall_seconds"] for r in reports],
        }  # fmt: skip
    return {
        "metric": metric, "dense": first[metric]["dense"], "standard_error": first[metric]["standard_error"]["dense"],
        "rows": first[metric]["rows"], "protocol": first[metric]["protocol"], "ratio_reached": first["ratio_reached"],
        "parameters": first["parameters"], "criteria": table,
    }  # fmt: skip


def once(folder: Path, make: Callable[..., None], *arguments: Any) -> Path:
    """Make a folder unless it is there."""
    if not folder.is_dir():
        make(folder, *arguments)
    return folder


def parse() -> argparse.Namespace:
    """Read the options; the defaults are for a GPU, or for a night on a CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = common.SHARED / "data"
    parser.add_argument("--work", type=Path, default=Path("build/encoder"))
    parser.add_argument("--texts", type=Path, nargs="+", default=[data / name for name in TEXTS])
    parser.add_argument("--vocabulary", type=Path, default=data / "bert-vocab" / "vocab.txt")
    parser.add_argument("--data", default=str(data / "glue" / "SST-2"), help="labelled texts")
    parser.add_argument("--eval", help="labelled texts to judge by, where the data have no split for it")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pretraining", type=int, default=20000, help="steps from scratch")
    parser.add_argument("--pretraining-lr", type=float, default=5e-4)
    parser.add_argument("--tuning", type=int, default=2000, help="steps of all weights on the task")
    parser.add_argument("--tuning-lr", type=float, default=5e-5)
    parser.add_argument("--steps", type=int, default=600, help="steps of pruning and tuning")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--criteria", nargs="+", default=["lora", "magnitude", "movement"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default="encoder", help="name of the result file")
    return parser.parse_args()


def main() -> None:
    """Go through all stages, each skipped where its folder is there already."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    pretrained = once(options.work / "pretrained", pretrain, options)
    dense = once(options.work / "dense", tune, pretrained, options)
    found: dict[str, list[dict[str, Any]]] = {}
    for criterion in options.criteria:
        for seed in options.seeds:
            report = run(options.work / f"{criterion}-{seed}", dense, options, criterion=criterion, seed=seed)
            found.setdefault(criterion, []).append(report)
            measured = report[report["metric"]]
            print(f"{criterion} {seed}: dense {measured['dense']:.4f}, pruned {measured['pruned']:.4f}", flush=True)
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    chosen |= {"texts": [path.name for path in options.texts], "data": Path(options.data).name}
    for name in ("work", "vocabulary", "name"):
        del chosen[name]
    common.write(options.name, {"options": chosen, **summarise(found)})


if __name__ == "__main__":
    main()
