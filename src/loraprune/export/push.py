"""The command `push`: upload a folder to the hub in one commit, its card completed from the base model's.

Knows nothing about what is in the folder. The hub client finds the token (HF_TOKEN or `hf auth login`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from loraprune.config.export import PushConfig
from loraprune.errors import CheckpointError, ConfigError
from loraprune.reporting.card import CARD, UNKNOWN, base_metadata, is_hub_name, join_card, licence_line, split_card

HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""of the library that the hub's client speaks HTTP with: httpx, or httpx2 since huggingface_hub 2"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was uploaded, ready for JSON."""

    values: dict[str, Any]


def push(options: PushConfig, api: Any = None) -> Pushed:
    """Upload a folder; `api` is the hub's client, an `HfApi` unless another one is given.

    Raises:
        CheckpointError: if the hub cannot be reached, or does not take it.
        ConfigError: if nobody is logged in.
    """
    client, folder = api or HfApi(), Path(options.model)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not hidden(path.relative_to(folder)))
    with clear_hub_errors(options.repo):
        if os.environ.get("HF_HUB_OFFLINE") == "1" and api is None:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        card = complete_card(folder)
        client.create_repo(options.repo, private=options.private, exist_ok=True)
        operations = [
            CommitOperationAdd(path.relative_to(folder).as_posix(), str(path))
            for path in files
            if path.relative_to(folder).as_posix() != CARD
        ]
        operations.append(CommitOperationAdd(CARD, card.encode("utf-8")))
        done = client.create_commit(options.repo, operations, commit_message="Upload by loraprune")
    values = {
        "model": options.model,
        "repo": options.repo,
        "private": options.private,
        "files": len(operations),
        "bytes": sum(path.stat().st_size for path in files),
        "license": split_front(card).get("license", UNKNOWN),
        "url": str(getattr(done, "commit_url", "")),
    }
    return Pushed(values)


def hidden(path: Path) -> bool:
    """Return whether a file does not belong to the model."""
    return any(part.startswith(".") for part in path.parts)


def complete_card(folder: Path) -> str:
    """Return the text of a folder's card, with the licence of the base model's card if it was not known when it was written.

    The folder is left as it is.
    """
    about, text = split_card(folder / CARD)
    base = about.get("base_model")
    if about.get("license", UNKNOWN) == UNKNOWN and isinstance(base, str) and is_hub_name(base):
        found = dict(base_metadata(base)) or _hub_metadata(base)
        known = {key: found[key] for key in ("license", "license_name", "license_link", "language") if found.get(key)}
        if "license" in known:
            text = text.replace(licence_line(about), licence_line(known))
            about |= known
    if about.get("license", UNKNOWN) == UNKNOWN:
        about["license"] = UNKNOWN
        logger.warning("the licence of the base model is unknown, and the card states that; edit the card on the hub")
    return join_card(about, text)


def _hub_metadata(name: str) -> dict[str, Any]:
    """Return the metadata of a card on the hub; nothing if it has none."""
    try:
        return dict(ModelCard.load(name, ignore_metadata_errors=True).data.to_dict())
    except (HfHubHTTPError, HTTPError, OSError, ValueError):
        return {}


def split_front(card: str) -> dict[str, Any]:
    """Return the metadata of a card's text."""
    return dict(ModelCard(card, ignore_metadata_errors=True).data.to_dict())


@contextmanager
def clear_hub_errors(repo: str) -> Iterator[None]:
    """Turn errors of the hub's client into one sentence."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise ConfigError(f"--repo {repo}: nobody is logged in; run `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        remedy = "check the token's rights and the name" if status in (401, 403, 404) else "try again later"
        raise CheckpointError(f"--repo {repo}: the hub refused ({status}); {remedy}; nothing was uploaded") from None
    except (OfflineModeIsEnabled, HTTPError, ConnectionError) as error:
        why = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else type(error).__name__
        raise CheckpointError(
            f"--repo {repo}: the hub cannot be reached ({why}); push from a machine with a network, nothing was uploaded"
        ) from None
