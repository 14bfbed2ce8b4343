from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pytest

from benchmark.report import collect, figures
from benchmark.report.figures import Picture
from benchmark.report.html import page
from benchmark.report.html.curve import charts
from benchmark.report.report import read_report
from benchmark.report.significance.decision import decide
from tests.report.conftest import SUITE

TITLES = {"zero_shot": "BiomedCLIP", "clip_lora": "CLIP-LoRA", "ace_lora": "ACE-LoRA", "full_ft": "Full FT"}
EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x02\x00\x00\x00\x03\x08\x02\x00\x00\x00"  # 2 x 3 pixels
)
VOID = ("meta", "img", "input")


class Element:
    """A parsed element: its tag, attributes, children and text."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Element] = []
        self.words: list[str] = []

    def all(self, tag: str = "", **attributes: str) -> Iterator[Element]:
        for child in self.children:
            same = all(child.attributes.get(name) == value for name, value in attributes.items())
            if same and tag in ("", child.tag):
                yield child
            yield from child.all(tag, **attributes)

    def one(self, tag: str = "", **attributes: str) -> Element:
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


class Page(HTMLParser):
    """A tree of elements; every element must be closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(text)
        assert self.open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.words.append(data)


@pytest.fixture(autouse=True)
def _titles(monkeypatch, choose_experiments):
    """Titles of the paper without importing the methods; no experiments."""
    choose_experiments()
    monkeypatch.setattr(collect, "method_titles", lambda name: (TITLES.get(name, name),) * 2)


@pytest.fixture
def store(tmp_path, write_cell):
    write_cell("ace_lora", 0, (0.50, 0.80), parameters=969_217, step=0.002)
    write_cell("ace_lora", 1, (0.54, 0.82), parameters=969_217, step=0.002)
    write_cell("clip_lora", 0, (0.44, 0.76), parameters=442_369, step=1.5, dirty=True)
    lost = write_cell("clip_lora", 2, None, status="failed", error="loss is not finite at step 7")
    trace = ["Traceback (most recent call last):", '  File "/home/somebody/trainer.py", line 7, in step']
    lost.write_json("status.json", {"status": "failed", "error": "loss is not finite", "traceback": trace})
    write_cell("full_ft", 0, (0.9, 0.9), limit=64)
    write_cell("user_method", 0, None, status="failed", error="out of memory")
    write_cell("zero_shot", 0, (0.35, 0.67), parameters=0, step=None, flops=None, curve=())
    return tmp_path


def parse(folder: Path, pictures: tuple[Picture, ...] = ()) -> Element:
    return Page(text_of(folder, pictures)).root


def text_of(folder: Path, pictures: tuple[Picture, ...] = ()) -> str:
    report = read_report(folder)
    return page(report.blocks, report.rendered, pictures)


def picture(folder: Path, **words: str) -> Picture:
    path = folder / "figure_toy.png"
    path.write_bytes(PNG)
    said = {"title": "Toy: Toy suite, backbone tiny", "caption": "Shows nothing.", **words}
    return Picture("figure_toy", **said, place="Toy suite, backbone tiny", folder=folder)


def rows_of(table: Element) -> dict[str, list[Element]]:
    """First words of each row's head -> its cells."""
    rows = table.one("tbody").all("tr")
    return {row.one("th").attributes["data-key"]: list(row.all("td")) for row in rows}


def test_every_run_has_a_part_that_the_table_and_the_list_of_runs_lead_to(store):
    root = parse(store)
    parts = {part.attributes["id"]: part for part in root.all("article")}
    folders = [path.parent for path in (store / "runs").rglob("config.yaml")]
    assert set(parts) == {"/".join(folder.parts[-4:]) for folder in folders}
    links = [link.attributes["href"].removeprefix("#") for link in root.one(id="runs").all("a")]
    assert sorted(links) == sorted(parts)
    seeds = [link.attributes["href"] for link in next(root.one(id="table-0").all("table")).all("a")]
    assert sorted(seed.removeprefix("#") for seed in seeds) == sorted(parts)
    assert all(part.attributes["class"] == "cell" for part in parts.values())


def test_every_link_leads_to_something_in_the_page(store):
    root = parse(store, (picture(store),))
    names = [element.attributes["id"] for element in root.all() if "id" in element.attributes]
    assert len(set(names)) == len(names)
    targets = {link.attributes["href"] for link in root.all("a")}
    assert targets <= {f"#{name}" for name in names}
    assert {"#runs", "#provenance", "#table-0", "#figure_toy"} <= targets


def test_a_part_tells_settings_origin_curve_scores_and_costs(store):
    part = parse(store).one("article", id="toy/tiny/ace_lora/seed-0")
    for expected in ("ACE-LoRA, seed 0", "0123456789", "method: ace_lora", "commit: 0123456789abcdef"):
        assert expected in part.text
    rows = [
        [cell.text for cell in row.children] for row in part.one("table", **{"class": "sortable"}).all("tr")
    ]
    assert ["rsna", "auroc", "0.9000", "[0.8700, 0.9300]", "1000"] in rows
    facts = {
        name.text: value.text
        for dl in part.all("dl")
        for name, value in zip(dl.all("dt"), dl.all("dd"), strict=True)
    }
    assert (facts["trainable_parameters"], facts["by_tower_text"]) == ("969,217", "12,000")
    (chart,) = part.all("svg")
    assert len(list(chart.all("circle"))) == 3
    assert "0.5 at step 0, 0.65 at step 20" in chart.attributes["aria-label"]


def test_a_failure_tells_its_reason_and_folds_its_traceback(store):
    part = parse(store).one("article", id="toy/tiny/clip_lora/seed-2")
    assert "loss is not finite" in part.text
    folded = next(part.all("details"))
    assert "open" not in folded.attributes
    assert 'File "trainer.py", line 7, in step' in folded.text
    assert "somebody" not in part.text


def test_marks_stand_beside_the_method_in_the_table(store):
    scores, costs = parse(store).one(id="table-0").all("table")
    for table in (scores, costs):
        heads = {
            row.one("th").attributes["data-key"]: row.one("th").text for row in table.one("tbody").all("tr")
        }
        assert "limited" in next(text for name, text in heads.items() if name.startswith("Full FT"))
        marked = next(text for name, text in heads.items() if name.startswith("CLIP-LoRA"))
        assert "failed" in marked
        assert "uncommitted changes" in marked


def test_the_summary_counts_what_must_be_known(store):
    text = parse(store).one(id="summary").text
    assert "7 runs: 5 success, 2 failed." in text
    assert "limited to 64 samples: not comparable, not ranked." in text
    assert "CLIP-LoRA: made with uncommitted changes to the program." in text
    assert "one seed only, so nothing is known of the spread" in text


def test_numbers_carry_their_value_for_sorting(store):
    scores, costs = parse(store).one(id="table-0").all("table")
    heads = [head.text for head in list(scores.one("thead").all("tr"))[-1].children]
    acc = heads.index("ACC [%]") - 1
    cells = rows_of(scores)
    assert float(cells["ACE-LoRA"][acc].attributes["data-value"]) == pytest.approx(0.52)
    assert "data-value" not in cells["user_method*"][acc].attributes
    assert "\u00b1 2.8" in cells["ACE-LoRA"][acc].text
    assert next(cells["ACE-LoRA"][acc].all("span")).attributes["class"] == "best"
    priced = {name.rstrip("*"): row for name, row in rows_of(costs).items()}
    assert priced["ACE-LoRA"][0].text == "969 K"
    values = {name: row[0].attributes.get("data-value") for name, row in priced.items()}
    assert (values["BiomedCLIP"], values["ACE-LoRA"], values["CLIP-LoRA"]) == ("0.0", "969217.0", "442369.0")


def test_the_card_says_what_the_tests_say(decided):
    report = read_report(decided)
    decision = decide(report.blocks[0])
    card = Page(page(report.blocks, report.rendered, ())).root.one("section", id="answer-0")
    assert [line.text for line in card.all("p")][: len(decision.sentences)] == list(decision.sentences)
    matrix, scores = card.all("table")
    marks = {row.one("th").text: list(row.all("td")) for row in matrix.one("tbody").all("tr")}
    assert list(marks) == [one.row.title for one in decision.standings]
    for one in decision.standings:
        cells = marks[one.row.title]
        assert [cell.attributes["class"] for cell in cells] == [one.signs[key] for key in decision.keys]
        for cell, key in zip(cells, decision.keys, strict=True):
            test = one.tests[key]
            shown = f"{100 * abs(test.difference):.1f}" if test.matters else ""
            assert cell.text == {"better": "+", "worse": "\u2212", "tied": "="}[one.signs[key]] + shown
            assert cell.attributes["title"].startswith(f"{100 * test.difference:+.1f} points, p ")
    rows = {row.one("th").text: list(row.all("td")) for row in scores.one("tbody").all("tr")}
    assert next(iter(rows)) == f"{decision.base.title} (baseline)"
    for at, best in enumerate(decision.best):
        bold = [title for title, cells in rows.items() if list(cells[at].all("b"))]
        assert bold == [best.row.title]
        tied = {title.removesuffix(" (baseline)") for title, cells in rows.items() if "=" in cells[at].text}
        assert tied == {row.title for row in best.tied}


def test_the_card_leaves_out_rows_and_columns_without_scores_and_names_them(store):
    card = parse(store).one("section", id="answer-0")
    slim = [table for table in card.all("table") if "slim" in table.attributes["class"]][0]
    titles = list(rows_of(slim))
    assert "user_method" not in titles
    assert "Without scores: user_method." in card.text
    cells = [cell for row in rows_of(slim).values() for cell in row[:-2]]
    assert all(cell.attributes.get("data-value") for cell in cells)


def test_everything_but_the_decision_is_folded(store):
    root = parse(store)
    folds = [fold for fold in root.one(id="more").children if fold.tag == "details"]
    assert [fold.attributes.get("id") for fold in folds] == ["tables", "runs", "provenance"]
    assert all("open" not in fold.attributes for fold in folds)


def test_nothing_is_requested_from_outside(store):
    text = text_of(store, (picture(store),))
    root = Page(text).root
    sources = [
        element.attributes[name]
        for element in root.all()
        for name in ("src", "href")
        if name in element.attributes
    ]
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert not re.search(r"url\(|@import|https?://|\bfetch\(|XMLHttpRequest", text)
    assert not [
        element for element in root.all() if element.tag in ("link", "iframe", "object", "base", "form")
    ]
    policy = next(meta for meta in root.all("meta") if "http-equiv" in meta.attributes).attributes["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_everything_from_the_store_is_escaped(tmp_path, write_cell):
    suite = copy.deepcopy(SUITE) | {"title": f"Suite {EVIL} $x^2$ {{{{ 7 * 7 }}}}"}
    suite["tasks"]["zeroshot"]["datasets"]["rsna"] |= {"title": EVIL, "classes": [EVIL]}
    write_cell("ace_lora", 0, suite=suite)
    write_cell("plug<b>in", 1, suite=suite, status="partial", error=EVIL)
    cell = write_cell("clip_lora", 0, suite=suite, status="failed", error=EVIL)
    cell.write_json("status.json", {"status": EVIL, "error": EVIL, "traceback": [EVIL]})
    cell.write_json(
        "provenance.json", {"git": {"commit": EVIL}, "created": EVIL, "hardware": {"gpus": [EVIL]}}
    )
    cell.write_json("efficiency.json", {"flops_convention": EVIL, EVIL: 1})
    cell.write_json("zeroshot.json", {"datasets": {EVIL: {"metrics": {EVIL: {"value": 0.5}}}}, "error": EVIL})
    cell.write_history([{"step": 0, f"val_{EVIL}": 0.1}, {"step": 1, f"val_{EVIL}": 0.2}])
    text = text_of(tmp_path, (picture(tmp_path, title=EVIL, caption=EVIL),))
    root = Page(text).root
    assert len(list(root.all("script"))) == 1
    assert len(list(root.all("img"))) == 1
    assert not [
        element for element in root.all() if any(name.startswith("on") for name in element.attributes)
    ]
    assert "{{ 7 * 7 }}" in next(root.all("h2")).text
    assert EVIL in root.one("article", id="toy/tiny/clip_lora/seed-0").text


def test_pictures_have_size_caption_and_words_for_those_who_cannot_see_them(tmp_path, write_cell):
    write_cell("ace_lora")
    root = parse(tmp_path, (picture(tmp_path),))
    image = root.one("img").attributes
    assert (image["width"], image["height"]) == ("2", "3")
    assert image["alt"] == "Toy: Toy suite, backbone tiny. Shows nothing."
    assert "Toy: Toy suite, backbone tiny. Shows nothing." in root.one(id="figure_toy").text
    assert root.one("a", href="#figure_toy").text == "Toy"


def test_damaged_files_cost_their_part_and_not_the_page(tmp_path, write_cell):
    cell = write_cell("ace_lora", 0)
    cell.write_json("provenance.json", {"git": "none", "packages": [], "hardware": None})
    (cell.path / "adapt.json").write_text("{half")
    (write_cell("clip_lora", 0).path / "zeroshot.json").write_text("{half")
    root = parse(tmp_path)
    assert "ACE-LoRA, seed 0" in root.one("article", id="toy/tiny/ace_lora/seed-0").text
    lost = root.one("article", id="toy/tiny/clip_lora/seed-0").text
    assert "unreadable" in lost
    assert str(tmp_path) not in lost


def test_a_page_of_many_cells_stays_small(tmp_path, write_cell):
    for name, seed in product([f"method_{number}" for number in range(11)], range(3)):
        write_cell(name, seed)
    text = text_of(tmp_path)
    assert text.count("<article") == 33
    assert len(text) < 1_000_000


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_colours_of_text_have_the_contrast_of_wcag_aa(scheme):
    style = (Path(figures.__file__).parents[1] / "html" / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.S)
    colours: dict[str, str] = {}
    for block in blocks if scheme == "print" else blocks[: 1 + (scheme == "dark")]:
        colours |= dict(re.findall(r"--([\w-]+): (#\w+)", block))
    for name, back in product(("ink", "soft", "link", "bad", "curve"), ("page", "panel")):
        assert contrast(colours[name], colours[back]) >= 4.5, (name, back)
    for name in ("paper", "better", "worse"):
        assert contrast(colours[name], colours[f"{name}-back"]) >= 4.5, name


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours as WCAG 2 defines it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    values = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_chart_marks_the_kept_step_and_skips_what_has_no_curve():
    history = [
        {"step": 0, "train_loss": None, "val_auroc": 0.5, "lr": 1.0},
        {"step": 10, "train_loss": 2.0, "val_auroc": 0.75, "lr": 0.5},
        {"step": 20, "train_loss": 1.0, "val_auroc": 0.5, "lr": 0.0},
    ]
    auroc, loss = sorted(charts(history, 10), key=lambda chart: -len(chart.points))
    assert [x for x, _, _ in auroc.points] == [56, 233, 410]
    assert [y for _, y, _ in auroc.points] == [156, 20, 156]
    assert auroc.kept == 233
    assert [label for _, label in loss.levels] == ["1", "2"]
    assert loss.line == "56,20 410,156"
    assert loss.kept == 56
    assert charts(history[:1]) == ()
    assert [y for _, y, _ in charts([{"step": 1, "val_a": 0.3}, {"step": 1, "val_a": 0.3}])[0].points] == [
        88,
        88,
    ]
