"""Turn the libraries' errors for a bad checkpoint into one sentence.

Knows nothing about how models are loaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING

from loraprune.errors import CheckpointError, ConfigError, LoraPruneError, UnsupportedModelError, nearest


@contextmanager
def clear_errors(model: str, what: str = "the model") -> Iterator[None]:
    """Turn the libraries' errors for a bad checkpoint in the block into one sentence."""
    try:
        yield
    except LoraPruneError:
        raise
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, EOFError, RecursionError) as error:
        raise CheckpointError(
            f"--model {model}: a file of {what} is torn or malformed ({_first_line(error)}); download it again"
        ) from None
    except StrictDataclassError as error:
        raise CheckpointError(f"--model {model}: config.json is invalid ({_first_line(error)})") from None
    except (OSError, HFValidationError) as error:
        offline = " (offline: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise CheckpointError(
            f"--model {model}: cannot be loaded{offline}: {_first_line(error)}; name a folder with config.json, "
            "model.safetensors and tokenizer files, or a hub id that this machine can reach"
        ) from None
    except Exception as error:  # a damaged configuration makes the libraries raise nearly anything
        text = _first_line(error)
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"--model {model}: it needs code from the checkpoint; if you trust it, give --trust-remote-code"
            ) from None
        unknown = re.search(r"has model type `([^`]+)`", str(error))
        if unknown:
            raise UnsupportedModelError(
                f"--model {model}: unknown model type {unknown[1]!r}{nearest(unknown[1], CONFIG_MAPPING)}: update transformers "
                "if it is a new one; docs/add-a-family.md shows how to add a family"
            ) from None
        if "model type" in text or "Unrecognized model" in text or "Unrecognized configuration" in text:
            raise UnsupportedModelError(
                f"--model {model}: {text}; docs/add-a-family.md shows how to add a family"
            ) from None
        raise CheckpointError(
            f"--model {model}: transformers cannot read {what} ({type(error).__name__}: {text}); check its files"
        ) from None


def _first_line(error: Exception) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return str(lines[0])[:200].rstrip(".") if lines else type(error).__name__
