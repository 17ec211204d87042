"""The site fetches nothing from elsewhere, and its search works in pages that are opened from disk."""

from __future__ import annotations

from pathlib import Path

import pytest

config = pytest.importorskip("zensical.config", reason="no builder of the site: pip install 'loraprune[docs]'")
ROOT = Path(__file__).resolve().parents[1]


def scripts(file: Path) -> list[str]:
    """Return the scripts that every page loads before its own."""
    return [script["path"] for script in config.parse_zensical_config(str(file))["extra"]["polyfills"]]


def test_pages_from_disk_have_the_index_and_a_worker_of_our_own(tmp_path: Path) -> None:
    assert scripts(ROOT / "zensical.toml") == ["javascripts/iframe-worker.js"]
    assert (ROOT / "docs" / "javascripts" / "iframe-worker.js").is_file()
    settings = config.parse_zensical_config(str(ROOT / "zensical.toml"))
    assert settings["plugins"]["offline"]["config"]["enabled"]  # it writes the index as a script
    assert "navigation.instant" not in settings["theme"]["features"]  # it fetches pages, which no page from disk may
    (tmp_path / "docs").mkdir()
    without = tmp_path / "zensical.toml"
    without.write_text('[project]\nsite_name = "x"\n[project.plugins.offline]\n', encoding="utf-8")
    assert [path.startswith("https://") for path in scripts(without)] == [True]
