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

import pytest

from tests.report.test_html import picture, text_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=500,700",
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


def browse(tmp_path: Path, *words: str) -> str:
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def probe(index: Path) -> dict[str, Any]:
    """What the page is like in the browser; our script is allowed by its hash, a second one is not."""
    text = index.read_text()
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src &#39;", "script-src 'sha256-" + digest + "' '")
    foreign = "<script>document.body.dataset.foreign = 'ran'</script>"
    copy = index.with_name("probed.html")
    copy.write_text(text.replace("</body>", f"{foreign}<script>{PROBE}</script></body>"))
    dom = browse(index.parent, "--dump-dom", copy.as_uri())
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
