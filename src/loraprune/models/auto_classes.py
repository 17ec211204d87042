"""Find the class of transformers for a configuration: the head that its `architectures` names.

A head is the name of an Auto class. Knows nothing about files or data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.errors import UnsupportedModelError

HEADS = {
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
}
"""Auto class -> transformers' table of the classes it builds; a configuration that names no head gets the first that knows it"""


def find_head(config: PreTrainedConfig) -> str:
    """Return the Auto class of the architecture that a configuration names, or the first that can build its model type.

    Raises:
        UnsupportedModelError: if none can.
    """
    named = set(config.architectures or ())
    able = [head for head, classes in _classes(config) if classes]
    able += [head for head in HEADS if head in (getattr(config, "auto_map", None) or {}) and head not in able]
    for head, classes in _classes(config):
        if named & classes:
            return head
    if not able:
        raise UnsupportedModelError(
            f"{config.model_type!r} is not a text or image model with a head in transformers: "
            f"one of {', '.join(HEADS)} is needed"
        )
    return able[0]


def name_class_(model: PreTrainedModel) -> None:
    """Write into a model's configuration which class of transformers it is, so that it is saved with its own head.

    A head that `from_pretrained` put on another checkpoint is not the one that its configuration names.

    Raises:
        UnsupportedModelError: if no Auto class builds the model, so that no folder could be loaded with its head.
    """
    known = {name for _, classes in _classes(model.config) for name in classes}
    code = getattr(model.config, "auto_map", None) or {}
    names = [each.__name__ for each in type(model).__mro__]
    found = next((name for name in names if name in known), None)
    if found is None and any(str(reference).rpartition(".")[2] in names for reference in code.values()):
        found = type(model).__name__
    if found is None:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no Auto class loads a model with its head, so it could not be saved; load it as one of "
            f"{', '.join(HEADS)}"
        )
    model.config.architectures = [found]


def _classes(config: PreTrainedConfig) -> Iterator[tuple[str, set[str]]]:
    """Yield every Auto class with the names of the classes that it has for a configuration."""
    for head, table in HEADS.items():
        mapping = getattr(transformers, table)
        found = mapping.get(type(config), ())
        yield head, {each.__name__ for each in (found if isinstance(found, tuple) else (found,))}


def can_build(config: PreTrainedConfig, head: str) -> bool:
    """Return whether an Auto class knows a model type, or the code that comes with the model has a class for it."""
    return bool(dict(_classes(config))[head]) or head in (getattr(config, "auto_map", None) or {})


def forget_code_(described: object) -> None:
    """Remove from a stock configuration, tokenizer or image processor the names of code in its former folder."""
    if type(described).__module__.partition(".")[0] != "transformers":
        return
    for values in (vars(described), getattr(described, "init_kwargs", {})):
        values.pop("auto_map", None)


def auto_class(head: str) -> Any:
    """Return the Auto class of a head."""
    return getattr(transformers, head)


def reinitialize_heads(model: PreTrainedModel, new: Callable[[str], bool], fresh: tuple[str, ...]) -> tuple[str, ...]:
    """Initialise a head again whose shapes fit but which was trained for other classes; return all initialised modules.

    What pools a backbone's outputs belongs to the backbone and stays. `new` and `fresh` are as `loading.load_with_head` has them.
    """
    names = (name for name, _ in model.named_parameters() if new(name))
    heads = {name.rpartition(".")[0] for name in names if not name.startswith(f"{model.base_model_prefix}.")}
    for path in sorted(heads - set(fresh)):
        layer: Any = model.get_submodule(path)
        layer.reset_parameters()
    return tuple(sorted(heads | set(fresh)))
