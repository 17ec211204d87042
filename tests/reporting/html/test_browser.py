"""The page in a real browser without a network: desktop and phone, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loraprune.reporting.html.folder import read_run
from loraprune.reporting.html.page import render
from tests.reporting.html.runs import write_run

pytest.importorskip("matplotlib")
sync_api = pytest.importorskip("playwright.sync_api", reason="no browser: pip install playwright")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = 1280, 390
HOLES = """(() => {
    const area = element => (element.getBoundingClientRect().width + 16) * (element.getBoundingClientRect().height + 16)
    const grid = document.querySelector('.plots')
    return grid ? 1 - [...grid.children].map(area).reduce((one, other) => one + other, 0) / area(grid) : 0
})()"""
"""the share of the grid of plots, with its gaps of 16 pixels, that no plot covers"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as driver:
        if path is None and not Path(driver.chromium.executable_path).is_file():
            pytest.skip("no browser: apt-get install chromium, or playwright install chromium")
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    path = root / "report.html"
    path.write_text(render(read_run(write_run(root / "run"))), encoding="utf-8")
    return path


def look(browser: Any, file: Path, width: int, scheme: str = "light") -> dict[str, Any]:
    """Open a page offline; return what it asked for and said, how wide it is, its colours and its screenshot."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    tab = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(file.as_uri())
    seen = tab.evaluate(
        """() => ({
        title: document.title,
        width: document.documentElement.scrollWidth,
        background: getComputedStyle(document.body).backgroundColor,
        ink: getComputedStyle(document.querySelector('h1')).color,
        label: getComputedStyle(document.querySelector('svg text') || document.body).fill,
        letters: Math.min(...[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height)),
        holes: HOLES,
        plots: [...document.querySelectorAll('figure svg')].filter(svg => svg.getBoundingClientRect().width > 250).length,
    })""".replace("HOLES", HOLES)
    )
    picture = tab.screenshot(full_page=True)
    context.close()
    return {**seen, "said": said, "asked": [url for url in asked if not url.startswith("data:")], "picture": picture}


def brightness(colour: str) -> float:
    return sum(int(part) for part in colour.strip("rgb()").split(",")[:3]) / 3


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_offline_fits_and_is_silent(browser: Any, file: Path, width: int, scheme: str) -> None:
    seen = look(browser, file, width, scheme)
    assert seen["asked"] == [file.as_uri()]
    assert seen["said"] == []
    assert seen["title"] != "broken"
    assert seen["width"] <= width
    assert seen["plots"] == 8
    assert abs(seen["holes"]) < 0.005
    assert seen["letters"] >= 7.5
    assert len(seen["picture"]) > 50_000


def test_dark_is_dark_and_plots_follow(browser: Any, file: Path) -> None:
    light, dark = (look(browser, file, DESKTOP, scheme) for scheme in ("light", "dark"))
    assert brightness(light["background"]) > 230 > 60 > brightness(dark["background"])
    for seen in (light, dark):
        assert abs(brightness(seen["background"]) - brightness(seen["ink"])) > 150
        assert seen["label"] == seen["ink"]


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_an_odd_number_of_plots_leaves_no_hole(browser: Any, width: int, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(read_run(write_run(tmp_path / "run", judged=False))), encoding="utf-8")
    seen = look(browser, path, width)
    assert seen["plots"] == 7
    assert abs(seen["holes"]) < 0.005


def test_the_checks_see_a_page_that_runs_fetches_or_overflows(browser: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<h1>x</h1><img src="https://example.org/a.png"><script>document.title="broken"</script><p style="width:2000px">x</p>'
        '<div class="plots" style="columns: 2"><p style="height:90px">1</p><p style="height:9px">2</p></div>'
    )
    seen = look(browser, bad, PHONE)
    assert seen["title"] == "broken"
    assert "https://example.org/a.png" in seen["asked"]
    assert seen["said"] != []
    assert seen["width"] > PHONE
    assert seen["holes"] > 0.1
    assert seen["plots"] == 0
