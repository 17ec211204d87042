"""Tasks: how a model is trained and evaluated, one small file a task.

A task is a `Task` of functions that is registered in a separate file, imported below. Other files
name a task only where they support just that one: a command that generates text, a graph with a cache. To add one:

1. `tasks/<name>.py` writes the functions and ends with `register_task(Task("<name>", "AutoModelFor...", ...))`:
   - `prepare(request)` reads `request.data` and `request.eval` (None: hold out a part of the data; data None: only evaluate), loads the
     tokenizer or image processor, and returns `Prepared`: rows for training and for evaluation (anything that has `__len__`,
     `__getitem__`, `take(places)` and a `protocol`, see `loraprune.data.Rows`), the collator that makes model inputs and `labels`
     from them, the processor that is saved beside the model, and the keys of config.json that depend on the data (num_labels,
     id2label). It runs before weights are loaded, so that wrong data are reported early.
   - `evaluate(model, prepared, batch)` returns `Measured`: metric, value, standard error, further figures, protocol, and
     where the value is a ratio over rows its sums and counts, by which two models are paired. The metric is the name of the
     entry in report.json.
   - `probe(config, rows, tokens)` returns fixed random inputs, on which masked, sliced and reloaded model are compared and that
     are timed. It contains whatever else forward needs, such as `use_cache=False`.
   - `predictions(logits, labels)` returns the logits that the loss compares with labels: those that `--teacher` distils.
   - `processor(request)` and `read(source, part)` are the halves of `prepare` that can fail separately: all of their errors are
     reported at once.
   - `columns` are those of the data that select this task for a model that is only pre-trained.
   - `new(name)` says which parameters a checkpoint may lack: a head that is then initialised from the seed and fully trained.
2. an import here; its Auto class is in `loraprune.models.auto_classes.HEADS`.
3. `tests/tiny.py`: its models get a line in VARIANTS; `tests/evaluation/tasks/` has one run from the command line.

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
