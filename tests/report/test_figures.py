from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmark.config.experiments import Experiment, ExperimentRow, ResolvedRow
from benchmark.registry import scan_plugins
from benchmark.report import figures
from benchmark.report.collect import collect_blocks
from benchmark.report.figures import (
    confusion,
    efficiency,
    forest,
    ranks,
    reliability,
    style,
    sweeps,
    training,
    write_figures,
)
from benchmark.report.figures.efficiency import pareto_front
from benchmark.report.figures.label_placement import place_labels, spread_apart
from benchmark.report.figures.stored import Stored
from benchmark.report.figures.style import Drawing, new_figure, write
from benchmark.report.model import Block
from benchmark.report.paper import load_paper
from benchmark.report.report import read_report

Choose = Callable[..., None]
SHIPPED = dict(style.STYLE)  # before tests/conftest.py makes it quicker


def test_the_pareto_front_keeps_what_nothing_cheaper_reaches():
    points = [(0.0, 50.0), (10.0, 60.0), (10.0, 58.0), (20.0, 59.0), (30.0, 60.0), (40.0, 70.0)]
    assert pareto_front(points) == [(0.0, 50.0), (10.0, 60.0), (40.0, 70.0)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=14))
def test_labels_at_line_ends_keep_order_and_distance(positions):
    placed = spread_apart(np.array(positions), 5.0, 0.0, 100.0)
    assert placed.min() >= -1e-9
    assert placed.max() <= 100 + 1e-9
    ordered = placed[np.argsort(positions, kind="stable")]
    assert (np.diff(ordered) >= 5.0 - 1e-9).all()


@pytest.mark.parametrize(
    ("positions", "gap", "placed"),
    [([30.0, 10.0, 80.0], 5.0, [30, 10, 80]), ([0.0] * 5, 50.0, [0, 25, 50, 75, 100])],
)
def test_line_ends_that_are_apart_stay_and_too_many_share_the_room(positions, gap, placed):
    assert spread_apart(np.array(positions), gap, 0.0, 100.0).tolist() == placed


def test_labels_of_crowded_points_do_not_cover_each_other_or_leave_the_axes():
    figure = Figure(figsize=(5, 4))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    figure.draw_without_rendering()
    rng = np.random.default_rng(0)
    points = [(0.5 + 0.03 * x, 0.5 + 0.03 * y) for x, y in rng.normal(size=(11, 2))]
    place_labels(axes, [(f"Method {number} $x", "black", point) for number, point in enumerate(points)])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


# --- kinds of figures -----------------------------------------------------------------------------------------


def _blocks(folder: Path) -> list[Block]:
    return collect_blocks(folder, load_paper())


def _one(drawings: Iterator[Drawing]) -> Drawing:
    (drawing,) = drawings
    return drawing


def test_every_method_has_a_colour_and_a_marker_of_its_own():
    looks = [style.look(number) for number in range(60)]  # the paper's eleven, all of peft's tuners, and more
    assert len({one.colour for one in looks}) == 60
    assert len({one.marker for one in looks}) == 60
    assert len({str(one.dashes) for one in looks[:5]}) == 5
    for one in looks:  # dark enough on white
        red, green, blue = (int(one.colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        assert 0.21 * red + 0.72 * green + 0.07 * blue < 0.72


def test_scores_stand_against_all_costs_that_were_measured(tmp_path, write_cell):
    write_cell("zero_shot", parameters=0, flops=None, step=None, curve=())
    write_cell("coop", scores=(0.5, 0.8))
    assert list(efficiency.draw(_blocks(tmp_path)[0])) == []  # two methods make no plot
    for seed in (0, 1):
        write_cell("taskres", seed, scores=(0.4 + 0.1 * seed, 0.8))
    (block,) = _blocks(tmp_path)
    first, paper, every = efficiency.draw(block)
    assert [first.name, paper.name, every.name] == ["cost", "A1", "efficiency"]
    (bars,) = [one for one in first.figure.axes[0].containers if one[0].get_ydata()[0] == pytest.approx(50)]
    # two sets of half width 3 and two seeds 10 points apart: sqrt(3^2 + 3^2) / 2 and 1.96 * 7.07 / sqrt(2)
    (end,) = bars[2][0].get_segments()
    assert end[:, 1] == pytest.approx([50 - 10.027, 50 + 10.027], abs=0.01)
    assert "training seeds" in first.caption
    assert (
        first.figure.get_suptitle()
        == first.title
        == "Mean ACC against trained parameters: Toy suite, backbone tiny"
    )
    assert [axes.get_xlabel() for axes in paper.figure.axes] == ["Trainable parameters"]
    labels = [axes.get_xlabel() for axes in every.figure.axes if axes.axison]
    assert len(labels) == 6  # parameters, FLOPs and time; nobody measured memory
    assert len(set(labels)) == 3
    assert "n = 1000" in every.caption
    drawn = {text.get_text() for text in every.figure.axes[0].texts}
    assert {"Zero-shot", "CoOp"} <= drawn


def test_a_forest_has_a_panel_per_column_and_a_line_per_method(tmp_path, write_cell):
    write_cell("zero_shot", parameters=0, curve=())
    for seed in (0, 1):
        write_cell("coop", seed, (0.5 + 0.02 * seed, 0.8))
    (block,) = _blocks(tmp_path)
    drawing = _one(forest.draw(block))
    shown = [axes for axes in drawing.figure.axes if axes.axison]
    assert [axes.get_title(loc="left").split("\n")[0] for axes in shown] == ["CheXpert 5x200"] * 2 + [
        "RSNA"
    ] * 2
    assert {axes.get_xlabel() for axes in shown} == {"ACC (%), n = 1000", "AUROC (%), n = 1000"}
    means = [line.get_xdata()[0] for line in shown[0].lines if len(line.get_xdata()) == 1]
    assert means == pytest.approx([40, 51])
    bars = [bar.get_segments()[0] for bar in shown[0].collections if hasattr(bar, "get_segments")]
    assert [37, 43] in [pytest.approx(bar[:, 0]) for bar in bars]
    assert "Band: Zero-shot" in drawing.caption
    coop = next(row for row in block.rows if row.method == "coop")
    for key in [key for key in coop.scores if key[1] == "rsna"]:
        del coop.scores[key]
    drawing = _one(forest.draw(block))  # a panel of one method compares nothing
    assert sum(axes.axison for axes in drawing.figure.axes) == 2


def test_a_cost_axis_has_few_ticks(tmp_path, write_cell):
    write_cell("zero_shot", parameters=0, step=None, flops=None, curve=())
    for method, step in (("coop", 0.002), ("taskres", 0.05), ("full_ft", 0.5)):
        write_cell(method, step=step)
    every = next(one for one in efficiency.draw(_blocks(tmp_path)[0]) if one.name == "efficiency")
    times = [axes for axes in every.figure.axes if axes.get_xlabel().startswith("Median time")]
    texts = [text.get_text() for text in times[0].get_xticklabels()]
    assert texts == ["none\ntrained", "3 ms", "10 ms", "30 ms", "100 ms", "300 ms"]


def test_average_ranks_need_three_methods(tmp_path, write_cell):
    for number, method in enumerate(("zero_shot", "coop")):
        write_cell(method, scores=(0.4 + 0.1 * number, 0.7))
    assert list(ranks.draw(_blocks(tmp_path)[0])) == []
    write_cell("taskres", scores=(0.6, 0.9))
    drawing = _one(ranks.draw(_blocks(tmp_path)[0]))
    texts = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert "TaskRes  1.00" in texts
    assert any(text.startswith("CD = ") for text in texts)
    assert "4 columns" in drawing.caption


def test_training_curves_are_means_of_the_steps_of_all_seeds(tmp_path, write_cell):
    write_cell("coop", 0, curve=(0.5, 0.6, 0.7))
    write_cell("coop", 1, curve=(0.5, 0.6))
    drawing = _one(training.draw(_blocks(tmp_path)[0]))
    (line,) = drawing.figure.axes[0].lines
    assert np.asarray(line.get_xdata()).tolist() == [0, 10]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([50.5, 60.5])


def _sweep(choose: Choose, *values: float) -> None:
    declared = [ExperimentRow(title="frozen", method="zero_shot")]
    declared += [ExperimentRow(title=f"r = {value:g}", method="coop", set={"r": value}) for value in values]
    rows = [ResolvedRow("frozen", "", "toy", "tiny", "zero_shot")]
    rows += [ResolvedRow(f"r = {v:g}", "", "toy", "tiny", "coop", f"r={v:g}", value=v) for v in values]
    tasks = {"zeroshot": ("acc",)}
    choose((Experiment("A.3", "curve", "Rank of LoRA", tasks=tasks, rows=tuple(declared), option="r"), rows))


def test_a_sweep_is_drawn_by_rising_value_with_what_is_missing_named(
    tmp_path, write_cell, choose_experiments
):
    _sweep(choose_experiments, 8, 2, 4)
    write_cell("zero_shot", parameters=0, curve=())
    write_cell("coop", scores=(0.6, 0.7), variant="r=8")
    write_cell("coop", scores=(0.5, 0.7), variant="r=2")
    (block,) = read_report(tmp_path).curves
    drawing = _one(sweeps.draw(block))
    assert drawing.name == "A3"
    (axes,) = drawing.figure.axes
    assert axes.get_xlabel() == "Rank of LoRA (r)"
    assert drawing.title.startswith("Scores against rank of LoRA: ")
    words = drawing.figure.get_suptitle().split("\n")
    assert max(map(len, words)) <= 12 * drawing.figure.get_size_inches()[0]
    beside = [
        line for line in axes.lines if line.get_marker() not in ("None", "") and len(line.get_xdata()) == 1
    ]
    assert len({line.get_marker() for line in beside}) == 2  # one of each dataset
    assert {line.get_markerfacecolor() for line in beside} > {"white"}
    assert axes.get_xticks().tolist() == [2, 8]
    curve = next(line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_zorder() == 2)
    assert np.asarray(curve.get_ydata()).tolist() == pytest.approx([50, 60])
    assert [text.get_text() for text in axes.texts] == ["CheXpert 5x200", "RSNA"]
    assert "Not shown: r = 4 (not run)." in drawing.caption
    assert "No values of the paper" in drawing.caption


def test_one_point_is_no_curve(tmp_path, write_cell, choose_experiments):
    _sweep(choose_experiments, 2, 8)
    write_cell("coop", variant="r=8")
    (block,) = read_report(tmp_path).curves
    assert list(sweeps.draw(block)) == []


# --- answers --------------------------------------------------------------------------------------------------


def test_confusion_worked_by_hand():
    similarity = np.array([[3.0, 1, 0], [0, 1, 0], [0, 5, 1], [2, 1, 0]])
    shares = confusion.confusion(similarity, np.array([0, 0, 1, 1]))
    assert shares[:2].tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0]]
    assert np.isnan(shares[2]).all()


def test_calibration_error_worked_by_hand():
    """Logits ln 3 and ln 9 against 0: confidences 3/4 and 9/10; of the first two answers one is right, of two both."""
    similarity = np.log([[3.0, 1], [1, 3], [9, 1], [1, 9]]) / 2
    found = reliability.sureness(similarity, np.array([0, 0, 0, 1]), scale=2.0)
    assert reliability.calibration_error(found) == pytest.approx((2 * abs(0.5 - 0.75) + 2 * abs(1 - 0.9)) / 4)
    filled = reliability.binned(found).dropna()
    assert filled.index.tolist() == [11, 13]  # of 15 bins
    assert filled["right"].tolist() == [0.5, 1]
    assert filled["confidence"].tolist() == pytest.approx([0.75, 0.9])


def _with_answers(cell: Any, similarity: np.ndarray, **info: Any) -> None:
    result = cell.read_json("zeroshot.json")
    result["datasets"]["rsna"]["info"] = {"classes": ["nothing", "something of a long name"], **info}
    cell.write_json("zeroshot.json", result)
    ids = np.array(["a", "b", "c", "d"])
    arrays = {"image_id": ids, "patient_id": ids, "similarity": similarity, "target": np.array([0, 0, 1, 1])}
    cell.write_npz("predictions/zeroshot-rsna.npz", arrays)


def test_answers_of_all_seeds_are_drawn_once_per_method(tmp_path, write_cell):
    right = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    wrong = np.array([[0.0, 1], [1, 0], [0, 1], [0, 1]])
    _with_answers(write_cell("coop", 0), right, logit_scale=1.0)
    _with_answers(write_cell("coop", 1), wrong, logit_scale=1.0)
    _with_answers(write_cell("zero_shot"), wrong, logit_scale=100.0)
    stored = Stored(_blocks(tmp_path)[0], "zeroshot", "rsna")
    matrix = _one(confusion.draw(stored))
    _, coop = (axes for axes in matrix.figure.axes if axes.axison and axes.get_label() != "<colorbar>")
    assert [text.get_text() for text in coop.texts] == ["75", "25", "0", "100"]
    assert "n = 4" in matrix.caption
    (bar,) = (axes for axes in matrix.figure.axes if axes.get_label() == "<colorbar>")
    assert bar.get_ylabel() == "Images of the true class (%)"
    diagram = _one(reliability.draw(stored))
    frozen, coop = (axes for axes in diagram.figure.axes if axes.axison)
    sure = 100 / (1 + np.exp(-1))
    errors = [axes.get_title(loc="left").splitlines()[1] for axes in (frozen, coop)]
    # sure of four answers, three of them right
    assert errors == ["ECE 25.0", f"ECE {((100 - sure) + abs(75 - sure)) / 2:.1f}"]
    assert not frozen.texts  # no number lies on a bar


def test_transductive_answers_are_left_out(tmp_path, write_cell):
    _with_answers(write_cell("coop"), np.eye(2)[[0, 0, 1, 1]], transductive=True)
    stored = Stored(_blocks(tmp_path)[0], "zeroshot", "rsna")
    assert list(confusion.draw(stored)) == []


# --- files ----------------------------------------------------------------------------------------------------


def test_pictures_carry_title_caption_and_no_date(tmp_path, write_cell, choose_experiments):
    choose_experiments()
    for backbone in ("tiny", "other"):
        for method in ("coop", "taskres", "mma"):
            write_cell(method, backbone=backbone)
    pictures = write_figures(_blocks(tmp_path), (), tmp_path / "report")
    names = [picture.name for picture in pictures]
    assert {"figure_A1", "figure_training", "figure_A1_toy_tiny"} <= set(names)
    assert len(set(names)) == len(names)
    for picture in pictures:
        assert [path.stem for path in picture.files] == [picture.name] * 2
        assert picture.caption.endswith(".")
        with Image.open(picture.png) as image:
            assert image.info["Description"] == picture.caption
        assert b"CreationDate" not in picture.files[1].read_bytes()


def test_fonts_are_embedded_as_publishers_ask(tmp_path, write_cell, monkeypatch):
    monkeypatch.setattr(style, "STYLE", SHIPPED)
    write_cell("coop")
    block = _blocks(tmp_path)[0]
    (picture,) = style.write([next(iter(training.draw(block)))], block, tmp_path, "")
    content = picture.files[1].read_bytes()
    assert b"/CIDFontType2" in content
    assert b"/Type3" not in content


def test_the_font_that_is_embedded_quicker_has_the_same_letters(tmp_path, monkeypatch):
    def pixels(family):
        with mpl.rc_context({**SHIPPED, "font.family": family}):
            figure, (axes,) = style.panels("AVATAR, To: effusion, office: 95 %", 1, 1, (4, 3))
            axes.plot([-1.5, 1], [0, 1e4])
            axes.set(
                xlabel="Gr\u00f6\u00dfe \u2212 1 \u00b1 2 \u00b5s, \u03b1\u2013\u03b2", ylabel="\u4e2d (%)"
            )
            style.freeze_layout(figure)
            figure.canvas.draw()
            return np.asarray(figure.canvas.buffer_rgba())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    short, own = style.fonts.__wrapped__()
    with pytest.warns(UserWarning, match="Glyph"):  # neither has Chinese letters
        assert np.array_equal(pixels([short, own]), pixels([own]))
    (path,) = tmp_path.rglob("*.ttf")
    path.unlink()
    path.mkdir()  # cannot be written
    assert style.fonts.__wrapped__() == [own]


def test_a_figure_is_drawn_again_only_when_its_results_have_changed(
    tmp_path, write_cell, choose_experiments, monkeypatch
):
    choose_experiments()
    write_cell("coop")
    first = write_figures(_blocks(tmp_path), (), tmp_path)
    times = [path.stat().st_mtime_ns for one in first for path in one.files]
    assert write_figures(_blocks(tmp_path), (), tmp_path) == first
    assert [path.stat().st_mtime_ns for one in first for path in one.files] == times
    first[-1].png.write_bytes(b"damaged")
    monkeypatch.setattr(figures, "write", lambda drawings, *rest: [])
    assert write_figures(_blocks(tmp_path), (), tmp_path) == first[:-1]
    write_cell("coop", scores=(0.6, 0.7))
    assert write_figures(_blocks(tmp_path), (), tmp_path) == []


def test_a_plugin_adds_a_figure(tmp_path, write_cell, choose_experiments):
    choose_experiments()
    write_cell("coop")
    plugin = tmp_path / "plugin.py"
    plugin.write_text("""
from benchmark.registry import register_figure
from benchmark.report.figures.style import Drawing, new_figure


@register_figure("mine")
def draw(block):
    yield Drawing("mine", "Mine", f"Rows: {len(block.rows)}.", new_figure(1, 1, layout=None))
""")
    assert scan_plugins([str(plugin)]) == []
    (mine,) = [one for one in write_figures(_blocks(tmp_path), (), tmp_path) if one.title == "Mine"]
    assert (mine.name, mine.caption) == ("figure_mine", "Rows: 1.")
    assert mine.png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_name_that_the_font_cannot_write_warns_nobody(tmp_path):
    """matplotlib would print a warning for each character, and the character with it: an escape sequence is one."""
    figure = new_figure(2, 1, layout=None)
    figure.suptitle("films\x1b[2J\x07 \u4e2d")
    (made,) = write(
        [Drawing("odd", "Odd", "", figure)], cast(Block, SimpleNamespace(heading="x")), tmp_path, ""
    )
    assert all(path.stat().st_size for path in made.files)
