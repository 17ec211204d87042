"""LoRAPrune on an encoder-decoder: a small T5, trained here on instructions, pruned to 50 % by lora, magnitude and random.

    python benchmarks/seq2seq.py --data rows.jsonl --work build/seq2seq

The rows hold `instruction` and `response`; the last tenth is held out, both while the model is trained and while it is pruned.
The model and every finished run are kept in --work, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from helpers import common
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

from loraprune.data import PairCollator, encode_pairs, load_data

SPECIAL = ("<pad>", "</s>", "<unk>")


def make_tokenizer(data: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer on the rows, which ends every text as T5's does."""
    lines = data.read_text(encoding="utf-8").splitlines()
    texts = [text for line in lines[: len(lines) * 9 // 10] for text in json.loads(line).values()]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    pad, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, unk_token=unk)


def make_model(folder: Path, rows: Path, options: argparse.Namespace) -> None:
    """Train a T5 from scratch and save it; the folder appears when it is whole."""
    tokenizer = make_tokenizer(rows, options.vocabulary)
    config = T5Config(
        vocab_size=options.vocabulary, d_model=options.width, d_kv=options.width // options.heads, num_heads=options.heads,
        d_ff=4 * options.width, num_layers=options.layers, decoder_start_token_id=0,
    )  # fmt: skip
    data = load_data(str(rows), tokenizer, length=options.length, encode=encode_pairs)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        arguments = TrainingArguments(
            output_dir=f"{work}/run", max_steps=options.pretraining, per_device_train_batch_size=options.batch,
            learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=options.pretraining // 20, weight_decay=0.01,
            save_strategy="no", report_to=[], logging_steps=max(1, options.pretraining // 10), remove_unused_columns=False,
            seed=0,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
        Trainer(model=model, args=arguments, train_dataset=data.train, data_collator=PairCollator(0, 0)).train()
        model.save_pretrained(f"{work}/model")
        tokenizer.save_pretrained(f"{work}/model")
        Path(f"{work}/model").rename(folder)


def main() -> None:
    """Train where there is no model yet, compare, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=common.SHARED / "data" / "instruct" / "alpaca-5000.jsonl")
    parser.add_argument("--work", type=Path, default=Path("build/seq2seq"))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4, help="blocks of each stack")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pretraining", type=int, default=3000, help="steps from scratch")
    parser.add_argument("--steps", type=int, default=150, help="steps of pruning and tuning")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    model, rows = options.work / "model", options.work / "rows.jsonl"
    if not model.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        lines = options.data.read_text(encoding="utf-8").splitlines()
        answered = [
            line for line in lines if json.loads(line)["response"].strip()
        ]  # without one there is nothing to learn
        rows.write_text("\n".join(answered) + "\n", encoding="utf-8")
        make_model(model, rows, options)
    grid = {
        "model": str(model), "data": str(rows), "output": str(options.work / "runs"), "steps": options.steps,
        "length": options.length, "batch": options.batch, "lr": options.lr, "ratio": 0.5, "baselines": ["finetune"],
        "grid": {"criterion": ["lora", "magnitude", "random"], "seed": list(range(options.seeds))}, "reference": "lora",
    }  # fmt: skip
    path = options.work / "grid.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "loraprune", "compare", "--config", str(path)], check=True)
    results = json.loads((options.work / "runs" / "results.json").read_text(encoding="utf-8"))
    settings = {name: value for name, value in vars(options).items() if name not in ("data", "work")}
    common.write("seq2seq", {"options": settings, "recipes": results["recipes"]})


if __name__ == "__main__":
    main()
