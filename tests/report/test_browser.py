"""The pages in a real browser: they fit, can be read and reached, and load nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_folders import PREPROCESSING, make_run

from tl.data.split import Source, Split
from tl.models.preprocessing import Preprocessing
from tl.report.comparison import write_comparison
from tl.report.page import write_page
from tl.report.pictures import Pictures
from tl.report.record import read_run

pytestmark = pytest.mark.slow

LEAST_CONTRAST = 4.5
"""WCAG 2.2, level AA, of text of usual size; of large text 3 would do"""

# For each piece of text its colour and what lies behind it, nearest first, as the browser computed
# them; of a drawing the fill of the text, and the shapes under its middle.
TEXTS = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, words = walker.currentNode.data.trim();
    if (!words || element.closest('title, desc, .unseen, .skip')) continue;
    const style = getComputedStyle(element);
    if (!element.checkVisibility() || element.getClientRects().length === 0) continue;
    const svg = element.closest('svg');
    const behind = [];
    if (svg) {
      const box = element.getBoundingClientRect();
      const x = box.x + box.width / 2, y = box.y + box.height / 2;
      for (const shape of [...svg.querySelectorAll('rect')].reverse()) {
        const b = shape.getBoundingClientRect(), s = getComputedStyle(shape);
        if (x < b.x || x > b.x + b.width || y < b.y || y > b.y + b.height) continue;
        if (s.fill.startsWith('rgb')) behind.push([s.fill, s.opacity * s.fillOpacity]);
      }
    }
    for (let at = svg || element; at; at = at.parentElement)
      behind.push([getComputedStyle(at).backgroundColor, 1]);
    found.push([words.slice(0, 40), svg ? style.fill : style.color, behind]);
  }
  return found;
}"""
# A drawing shows nothing of a text that stands out of it.
CUT_LABELS = """() => [...document.querySelectorAll('svg')].flatMap((svg) => {
  const whole = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter((text) => {
    if (!text.checkVisibility()) return false;
    const box = text.getBoundingClientRect();
    return box.left < whole.left - 1 || box.right > whole.right + 1 ||
      box.top < whole.top - 1 || box.bottom > whole.bottom + 1;
  }).map((text) => text.textContent);
})"""
AS_RGB = """(colours) => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 1;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  return colours.map((colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("there is no chromium, and CI is set; apt-get install chromium")
        pytest.skip("no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of a run with long names, a comparison, and a page of a run that adapts."""
    folder = tmp_path_factory.mktemp("runs")
    classes = ["ant", "bee", "Käfer, groß", *(f"a class with a long name {i}" for i in range(20))]
    records = [
        read_run(make_run(folder / name, classes, seed=i, images=120, state=state))
        for i, (name, state) in enumerate(
            [("a-run-with-a-name-that-is-much-too-long-for-a-telephone", "failed"), ("b", "done")]
        )
    ]
    names = [f"val/{i}.png" for i in range(120)]
    split = Split(names, np.zeros(120, dtype=np.int64), _gradient)
    source = Source("toys", tuple(classes), split, split)
    pictures = [Pictures(source, Preprocessing.from_dict(PREPROCESSING)) for _ in records]
    write_page(records[0], pictures[0], folder / "run.html")
    write_comparison(records, pictures, folder / "comparison.html")
    adapting = read_run(make_run(folder / "c", adapts=True))
    write_page(adapting, Pictures(), folder / "adaptation.html")
    return {which: folder / f"{which}.html" for which in ("run", "comparison", "adaptation")}


def _gradient(i: int) -> Image.Image:
    return Image.linear_gradient("L").resize((40, 40)).convert("RGB").rotate(9 * i)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("which", ["run", "comparison", "adaptation"])
def test_a_page_fits_and_can_be_read(
    which: str, width: int, scheme: str, browser: Any, pages: dict[str, Path]
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[which].as_uri())
    wide = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
    assert max(wide) <= width
    assert page.evaluate(CUT_LABELS) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(rgb(page, [background])[0][:3]) < 200) == (scheme == "dark")
    assert_contrast(page)
    assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1  # the page itself
    page.close()


@pytest.mark.parametrize("which", ["run", "comparison", "adaptation"])
def test_the_keyboard_reaches_all_there_is_to_reach(
    which: str, browser: Any, pages: dict[str, Path]
) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 800})
    page.goto(pages[which].as_uri())
    count = page.evaluate(
        "() => { const all = [...document.querySelectorAll('a[href], summary, [tabindex]')]"
        ".filter((e) => e.checkVisibility());"
        "all.forEach((e, i) => { e.dataset.number = i; }); return all.length; }"
    )
    assert count > 5
    reached, outlined = [], []
    for _ in range(count):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("Number(document.activeElement.dataset.number)"))
        outlined.append(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    assert reached == list(range(count))  # in the order of the page
    assert set(outlined) == {"solid"}
    page.close()


@pytest.mark.parametrize("which", ["run", "comparison", "adaptation"])
def test_paper_holds_all_that_the_screen_does(
    which: str, browser: Any, pages: dict[str, Path]
) -> None:
    # What a browser leaves of A4 at 96 pixels an inch; a dark screen is not to print a dark page.
    page = browser.new_page(viewport={"width": 718, "height": 1000}, color_scheme="dark")
    page.goto(pages[which].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert_contrast(page)
    assert page.evaluate("!document.querySelector('nav').checkVisibility()")
    cut = page.evaluate(
        "() => [...document.querySelectorAll('.wide, pre')].filter((e) => e.checkVisibility() "
        "&& getComputedStyle(e).overflowX !== 'visible').map((e) => e.ariaLabel)"
    )
    assert cut == []
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def assert_contrast(page: Any) -> None:
    texts = page.evaluate(TEXTS)
    assert len(texts) > 100
    colours = sorted({c for _, c, behind in texts for c in [c, *(b for b, _ in behind)]})
    of = dict(zip(colours, rgb(page, colours), strict=True))
    low = []
    for words, colour, behind in texts:
        under = np.array([255.0, 255.0, 255.0])
        for name, opacity in reversed(behind):
            *values, alpha = of[name]
            share = alpha / 255 * float(opacity)
            under = share * np.array(values) + (1 - share) * under
        ratio = contrast(np.array(of[colour][:3]), under)
        if ratio < LEAST_CONTRAST:
            low.append(f"{words!r}: {ratio:.2f}, {colour} on {under.round()}")
    assert low == []


def rgb(page: Any, colours: list[str]) -> list[list[int]]:
    """Any colours of CSS as red, green, blue and alpha of 0 to 255."""
    return page.evaluate(AS_RGB, colours)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """The ratio of WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of relative luminances, from 1 to 21."""
    shares = np.stack([one, other]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return float((light + 0.05) / (dark + 0.05))


def test_the_ratio_is_that_of_the_standard() -> None:
    assert contrast(np.zeros(3), np.full(3, 255.0)) == pytest.approx(21)
    # The standard's own example of a grey that just passes on white.
    assert contrast(np.full(3, 0x76), np.full(3, 255.0)) == pytest.approx(4.54, abs=0.005)
