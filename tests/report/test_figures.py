from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmark.report.figures import pareto_front
from benchmark.report.labels import place_labels, spread_apart
from benchmark.report.tables import parameters_text, seconds_text


def test_the_pareto_front_keeps_what_nothing_cheaper_reaches() -> None:
    points = [(0.0, 50.0), (10.0, 60.0), (10.0, 58.0), (20.0, 59.0), (30.0, 60.0), (40.0, 70.0)]
    assert pareto_front(points) == [(0.0, 50.0), (10.0, 60.0), (40.0, 70.0)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=14))
def test_labels_at_line_ends_keep_order_and_distance(positions: list[float]) -> None:
    placed = spread_apart(np.array(positions), 5.0, 0.0, 100.0)
    assert placed.min() >= -1e-9
    assert placed.max() <= 100 + 1e-9
    ordered = placed[np.argsort(positions, kind="stable")]
    assert (np.diff(ordered) >= 5.0 - 1e-9).all()


def test_line_ends_that_are_apart_stay_where_they_are() -> None:
    assert spread_apart(np.array([30.0, 10.0, 80.0]), 5.0, 0.0, 100.0).tolist() == [30.0, 10.0, 80.0]


def test_too_many_labels_share_the_room() -> None:
    assert spread_apart(np.zeros(5), 50.0, 0.0, 100.0).tolist() == [0.0, 25.0, 50.0, 75.0, 100.0]


def test_labels_of_crowded_points_do_not_cover_each_other_or_leave_the_axes() -> None:
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


def test_numbers_are_short_and_keep_three_digits() -> None:
    values = (None, 0, 77, 2049, 35_000, 969_217, 3_550_000, 195_900_000)
    assert [parameters_text(value) for value in values] == [
        "-", "0", "77", "2.05 K", "35.0 K", "969 K", "3.55 M", "196 M"
    ]  # fmt: skip
    assert [seconds_text(value) for value in (None, 0.0123, 0.25, 1.5)] == [
        "-",
        "12.3 ms",
        "250 ms",
        "1.50 s",
    ]
