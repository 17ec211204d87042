"""`loraprune push`: one commit, a complete card, no secrets, and one line for whatever is wrong."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from loraprune.config.export import PushConfig
from loraprune.errors import CheckpointError, ConfigError
from loraprune.export import push
from loraprune.reporting import card
from loraprune.reporting.card import metadata, split_card
from tests.cli.cases import refused

http = importlib.import_module(push.HTTPError.__module__.partition(".")[0])
"""the library that the hub's client speaks HTTP with"""
TEXT = (
    "---\nbase_model: org/base\nlicense: unknown\ntags: [loraprune]\n---\n\n# small\n\n" + card.licence_line({}) + "\n"
)


class Hub:
    """A hub that records what it is sent, or refuses."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.repos, self.sent = error, [], {}  # type: ignore[var-annotated]

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        if self.error:
            raise self.error
        self.repos.append((repo, private))

    def create_commit(self, repo: str, operations: list[Any], *, commit_message: str) -> Any:
        for one in operations:
            content = one.path_or_fileobj
            self.sent[one.path_in_repo] = content if isinstance(content, bytes) else Path(content).read_bytes()
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "small"
    (made / ".cache").mkdir(parents=True)
    (made / ".cache" / "x").write_text("not for the hub")
    for name in ("model.safetensors", "report.json"):
        (made / name).write_text("{}")
    (made / "README.md").write_text(TEXT)
    return made


def test_one_commit_with_the_licence_of_the_base_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "base_metadata", lambda _: {"license": "apache-2.0"})
    hub: Any = Hub()
    values = push.push(PushConfig(model=str(folder), repo="me/small", private=True), hub).values
    assert hub.repos == [("me/small", True)]
    assert set(hub.sent) == {"README.md", "model.safetensors", "report.json"}
    sent = hub.sent["README.md"].decode()
    assert "license: apache-2.0" in sent
    assert "Licence: apache-2.0" in sent
    assert (values["license"], values["files"]) == ("apache-2.0", 3)
    assert (folder / "README.md").read_text() == TEXT  # left as it was


def test_an_unknown_licence_is_said_to_be_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "_hub_metadata", lambda _: {})
    hub: Any = Hub()
    assert push.push(PushConfig(model=str(folder), repo="me/small"), hub).values["license"] == "unknown"
    assert "was unknown when this card was written" in hub.sent["README.md"].decode()


def refusal(status: int) -> HfHubHTTPError:
    request = http.Request("POST", "https://hub")
    return HfHubHTTPError(f"no, hf_{'a' * 30}", response=http.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (refusal(403), CheckpointError, r"the hub refused \(403\); check the token's rights"),
        (refusal(500), CheckpointError, r"the hub refused \(500\); try again later"),
        (http.ConnectError("no route"), CheckpointError, "cannot be reached .ConnectError."),
        (LocalTokenNotFoundError("no"), ConfigError, "nobody is logged in"),
    ],
)
def test_what_the_hub_says_is_one_line_without_a_token(
    error: Exception, kind: type[Exception], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "_hub_metadata", lambda _: {})
    hub: Any = Hub(error)
    with pytest.raises(kind, match=message) as caught:
        push.push(PushConfig(model=str(folder), repo="me/small"), hub)
    assert "hf_" not in str(caught.value)
    assert hub.sent == {}


def test_wrong_input(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = ["push", "--model", str(folder), "--repo", "me/small"]
    refused(good, capfd, "cannot be reached (HF_HUB_OFFLINE is set)")
    refused([*good[:-1], "small"], capfd, "--repo small: write it as org/name")
    (tmp_path / "empty").mkdir()
    refused(["push", "--model", str(tmp_path / "empty"), "--repo", "me/x"], capfd, "not a folder written by loraprune")


def test_metadata_names_the_hub_and_nothing_of_this_machine(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: llama3.2\nbase_model: meta/small\n---\nText")
    about = metadata(str(base), str(tmp_path / "own.txt"), "causal-lm", tags=["x"])
    assert about == {
        "base_model": "meta/small", "license": "llama3.2", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["loraprune", "pruned", "x"],
    }  # fmt: skip
    named = metadata("meta/large", "org/texts", "image-classification")
    assert (named["base_model"], named["datasets"], named["license"]) == ("meta/large", ["org/texts"], "unknown")
    assert "base_model" not in metadata("demo", "stdlib", "causal-lm")
    (base / "README.md").write_text("---\n: [\n---\nText")
    assert split_card(base / "README.md")[0] == {}
