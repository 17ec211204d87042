"""What a model is trained for and evaluated by: one small file a task.

A task is a `Task` of functions that is registered in a file of its own, imported below. Other files
name a task only where they serve that one alone: a command that generates text, a graph with a cache. To add one:

1. `tasks/<name>.py` writes the functions and ends with `register_task(Task("<name>", "AutoModelFor...", ...))`:
   - `prepare(request)` reads `request.data` and `request.eval` (None: hold a part of the data out; data None: only evaluate), loads the
     tokenizer or image processor, and returns `Prepared`: rows to train on and to evaluate on (anything that has `__len__`,
     `__getitem__`, `take(places)` and a `protocol`, see `loraprune.data.Rows`), the collator that makes model inputs and `labels`
     of them, the processor that is saved beside the model, and the keys of config.json that the data decide (num_labels,
     id2label). It runs before weights are loaded, so that wrong data cost nothing.
   - `evaluate(model, prepared, batch)` returns `Measured`: metric, value, standard error, what else was measured, protocol, and
     where the value is a ratio over rows its sums and counts, by which two models are paired. The metric is the name of the
     entry in report.json.
   - `probe(config, rows, tokens)` returns fixed random inputs, on which masked, sliced and reloaded model are compared and that
     are timed. Whatever forward needs besides tensors, such as `use_cache=False`, is in it.
   - `predictions(logits, labels)` returns the logits that the loss compares with labels: what `--teacher` imitates.
   - `processor(request)` and `read(source, part)` are the halves of `prepare` that can fail each on its own: all of their errors are
     told at once.
   - `columns` are those of the data by which a model that is only pre-trained is taken for one of this task.
   - `new(name)` says which parameters a checkpoint may lack: a head that then starts anew from the seed and is trained whole.
2. an import here; its Auto class stands in `loraprune.models.auto_classes.HEADS`.
3. `tests/tiny.py`: its models get a line in VARIANTS; `tests/evaluation/tasks/` shows one run from the command line.

The task of a run is the one of `--task`, else that of the head that the model's configuration names; a masked language
model, which is only pre-trained, takes the task whose `columns` the data have.
"""

from loraprune.evaluation.tasks import (  # noqa: F401  (importing a task registers it)
    causal_lm,
    image_classification,
    masked_lm,
    seq2seq,
    sequence_classification,
)
from loraprune.evaluation.tasks.base import Collate, Inputs, Predictions, Prepared, Request, Task, register_task, tasks
from loraprune.evaluation.tasks.find import choose_task, find_task, probe_of, same_task

__all__ = [
    "Collate",
    "Inputs",
    "Predictions",
    "Prepared",
    "Request",
    "Task",
    "choose_task",
    "find_task",
    "probe_of",
    "register_task",
    "same_task",
    "tasks",
]
