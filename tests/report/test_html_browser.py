"""The page in a real browser; left out where there is none."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark.report import html as html_room
from benchmark.report.figures import efficiency
from benchmark.report.figures.style import write
from benchmark.report.html import page
from benchmark.report.report import read_report
from tests.report.test_html import picture, text_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
PROBE = """
const table = document.querySelector("#table-0 table");
const heads = Array.from(table.tHead.rows[table.tHead.rows.length - 1].cells);
const order = () => Array.from(table.tBodies[0].rows, (row) => row.cells[0].dataset.key);
const clicked = (name) => {
  const head = heads.find((one) => one.textContent === name);
  head.firstElementChild.click();
  return [head.getAttribute("aria-sort"), order()];
};
const shown = (element) => getComputedStyle(element).display !== "none";
const visit = (hash) => {
  location.hash = hash;
  const parts = Array.from(document.querySelectorAll(".cell")).filter(shown).map((part) => part.id);
  return [shown(document.querySelector(".overview")), parts];
};
const found = {
  before: order(),
  clicks: ["AUROC [%]", "AUROC [%]", "AUROC [%]", "Method", "AUROC [%]"].map(clicked),
  sorted: heads.filter((head) => head.getAttribute("aria-sort") !== "none").length,
  keyboard: heads.every((head) => head.firstElementChild.tagName === "BUTTON" && head.firstElementChild.tabIndex === 0),
  views: ["", "#toy/tiny/c_method/seed-1", "#runs"].map(visit),
  foreign: document.body.dataset.foreign ?? "",
  width: document.documentElement.scrollWidth,
};
document.body.dataset.found = JSON.stringify(found);
"""
SCREEN = 900
"""Height of a screen, in pixels."""
LAYOUT = """
const fits = (table) => table.scrollWidth <= table.parentElement.clientWidth;
const shown = (element) => getComputedStyle(element).display !== "none";
const [matrix, slim] = document.querySelectorAll(".card table");
const box = document.querySelector("input.intervals");
const interval = slim.querySelector("small.interval");
const found = { width: innerWidth, page: document.documentElement.scrollWidth, matrix: fits(matrix), slim: fits(slim) };
found.folds = document.querySelector("#more").getBoundingClientRect().top + scrollY;
found.names = Array.from(document.querySelectorAll(".card tbody th"), (name) => name.getClientRects().length
  && name.offsetHeight <= 1.9 * parseFloat(getComputedStyle(name).lineHeight));
found.intervals = [shown(interval)];
box.focus();
found.focused = document.activeElement === box;
box.click();
found.intervals.push(shown(interval));
box.click();
const folds = Array.from(document.querySelectorAll("#more > details"));
const heads = folds.map((fold) => fold.firstElementChild);
found.keys = heads.every((head) => head.tagName === "SUMMARY" && head.tabIndex === 0);
const open = () => folds.filter((fold) => fold.open).length;
found.open = [open()];
dispatchEvent(new Event("beforeprint"));
found.open.push(open());
dispatchEvent(new Event("afterprint"));
found.open.push(open());
location.hash = "#provenance";
dispatchEvent(new Event("hashchange"));
found.open.push(open());
found.all = folds.length;
document.body.dataset.found = JSON.stringify(found);
"""
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium on PATH")


@pytest.fixture
def index(tmp_path, write_cell, choose_experiments):
    """A page with three methods of known order (by value, not as text: 9e-08), one of them with a failed run."""
    choose_experiments()
    write_cell("b_method", 0, (0.2, 9e-8))
    write_cell("a_method", 0, (0.3, 0.60), step=None)
    write_cell("c_method", 0, (0.1, 0.70))
    write_cell("c_method", 1, None, status="failed", error="no")
    write_cell("lost", 0, None, status="failed", error="no")
    path = tmp_path / "index.html"
    path.write_text(text_of(tmp_path, (picture(tmp_path),)))
    return path


@pytest.fixture(scope="module")
def decision_page(decided, tmp_path_factory):
    """The page of five methods with verdicts, with its plot of score against cost."""
    folder = tmp_path_factory.mktemp("page")
    report = read_report(decided)
    pictures = write(efficiency.draw(report.blocks[0]), report.blocks[0], folder, "")
    path = folder / "index.html"
    path.write_text(page(report.blocks, report.rendered, pictures))
    return path


def browse(tmp_path: Path, *words: str, width: int = 500, height: int = 700) -> str:
    command = [
        BROWSER,
        *FLAGS,
        f"--window-size={width},{height}",
        f"--user-data-dir={tmp_path / 'profile'}",
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def probe(index: Path, script: str = PROBE, **size: int) -> dict[str, Any]:
    """What the page is like in the browser; our script is allowed by its hash, a second one is not."""
    text = index.read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = text.replace("script-src &#39;", "script-src 'sha256-" + digest + "' '")
    foreign = "<script>document.body.dataset.foreign = 'ran'</script>"
    copy = index.with_name("probed.html")
    copy.write_text(text.replace("</body>", f"{foreign}<script>{script}</script></body>"))
    dom = browse(index.parent, "--dump-dom", copy.as_uri(), **size)
    match = re.search(r'data-found="([^"]*)"', dom)
    assert match, dom[:2000]
    return json.loads(html.unescape(match[1]))


def measured(order: list[str]) -> list[str]:
    return [name for name in order if "_method" in name]


def test_the_page_sorts_by_value_opens_runs_by_their_link_and_runs_no_foreign_script(index):
    found = probe(index)
    clicks = [(state, [name[0] for name in measured(order)]) for state, order in found["clicks"]]
    assert clicks == [
        ("descending", ["c", "a", "b"]),
        ("ascending", ["b", "a", "c"]),
        ("none", ["a", "b", "c"]),
        ("ascending", ["a", "b", "c"]),
        ("descending", ["c", "a", "b"]),
    ]
    assert found["clicks"][2][1] == found["before"]
    # a row without a number stays last
    assert all(order[-1].startswith("lost") for state, order in found["clicks"] if state != "none")
    assert found["sorted"] == 1
    assert found["keyboard"]
    assert found["views"] == [[True, []], [False, ["toy/tiny/c_method/seed-1"]], [True, []]]
    assert found["foreign"] == ""
    assert found["width"] <= 500  # wide tables scroll in their own box


def test_the_page_can_be_seen_and_printed(index):
    seen, printed = index.with_name("seen.png"), index.with_name("printed.pdf")
    browse(index.parent, f"--screenshot={seen}", index.as_uri())
    browse(index.parent, f"--print-to-pdf={printed}", index.as_uri())
    assert seen.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert seen.stat().st_size > 10_000
    assert printed.read_bytes()[:5] == b"%PDF-"


@pytest.mark.parametrize("width", [1440, 1280, 500])
def test_the_decision_fits_and_is_used_by_keyboard(decision_page, width):
    found = probe(decision_page, LAYOUT, width=width, height=SCREEN)
    assert found["width"] == width
    assert found["page"] <= width
    assert found["folds"] <= 4 * SCREEN or width < 1280
    assert (found["matrix"], found["slim"]) == (True, True) or width < 1280
    assert all(found["names"])  # each in one line
    assert found["intervals"] == [False, True]
    assert found["focused"]
    assert found["keys"]
    assert found["open"] == [0, found["all"], 0, 1]


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1280, "dark"), (390, "light")])
def test_screenshots_show_verdicts_in_colour(decision_page, width, scheme):
    seen = decision_page.with_name(f"{width}_{scheme}.png")
    words = ["--blink-settings=preferredColorScheme=0"] * (scheme == "dark")
    browse(
        decision_page.parent,
        *words,
        f"--screenshot={seen}",
        decision_page.as_uri(),
        width=width,
        height=2 * SCREEN,
    )
    with Image.open(seen) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (2 * SCREEN, width, 3)
    style, names = (
        (Path(html_room.__file__).parent / "style.css").read_text(),
        ("page", "better-back", "worse-back"),
    )
    colours = {name: re.findall(rf"--{name}: (#\w+)", style)[scheme == "dark"] for name in names}
    share = {
        name: (pixels == [int(colour[at : at + 2], 16) for at in (1, 3, 5)]).all(axis=2)
        for name, colour in colours.items()
    }
    assert share["page"].mean() > 0.3
    assert share["page"][:, -3:].all()  # nothing reaches over the right edge
    assert min(share["better-back"].mean(), share["worse-back"].mean()) > 0.001
