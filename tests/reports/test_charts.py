"""Geometry of the page's charts."""

import pytest

from hf_glmd.reports.charts import MAX_STRIPS, Scale, Series, bubble_chart, evenly, line_chart, nice_ticks
from hf_glmd.utils.text import short


def chart(points, **options):
    options = {"x_label": "step", "y_format": lambda value: f"{value:.2f}", **options}
    return line_chart("t", [Series("kl", "student", points)], **options)


def test_points_are_where_their_numbers_are():
    made = chart([(0, 4.0), (50, 1.0), (100, 2.0)])
    [line] = made.series
    assert line.places == [(0, 100), (50, 25), (100, 50)] and line.path == "0.00,0.00 50.00,75.00 100.00,50.00"
    assert made.y_ticks == [(0, "0"), (25, "1"), (50, "2"), (75, "3"), (100, "4")]
    assert made.x_ticks == [(0, "0"), (50, "50"), (100, "100")]
    assert (made.header, made.rows) == (["step", "kl"], [["0", "4.00"], ["50", "1.00"], ["100", "2.00"]])


def test_logarithms_are_even_and_reach_the_end_of_the_vocabulary():
    made = chart([(1, 1000), (10, 100), (100, 10)], logarithmic=True, x_to=10_000, cut=(100, "half"))
    xs, ys = zip(*made.series[0].places, strict=True)
    assert xs == pytest.approx((0, 25, 50), abs=0.01) and made.cut == (50.0, "half")
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.01) and 0 < ys[2] < ys[0] < 100
    assert {"1", "100", "10k"} <= {text for _, text in made.x_ticks}


def test_strips_cover_the_width_and_say_every_series():
    first, second = Series("a", "teacher", [(0, 1.0), (10, 2.0)]), Series("b", "student", [(10, 3.0), (40, 4.0)])
    strips = line_chart("t", [first, second], x_label="step", y_format=short).strips
    assert [strip.text for strip in strips] == ["step 0\na: 1", "step 10\na: 2\nb: 3", "step 40\nb: 4"]
    assert strips[0].left == 0 and sum(strip.width for strip in strips) == pytest.approx(100)
    for strip, place in zip(strips, (0, 25, 100), strict=True):
        assert strip.left + strip.width * strip.place / 100 == pytest.approx(place, abs=0.1)
    many = chart([(n, 1.0) for n in range(1000)]).strips
    assert len(many) == MAX_STRIPS and many[-1].text.startswith("step 999")


@pytest.mark.parametrize("points", [[(5, 2.0)], [(0, 0.0), (1, 0.0)], [(0, -3.0), (7, -1.0)], [(0, 1e-9), (1, 2e-9)]])
def test_odd_curves_stay_in_their_frame(points):
    made = chart(points)
    assert all(0 <= part <= 100 for place in made.series[0].places for part in place)
    assert len({text for _, text in made.y_ticks}) == len(made.y_ticks) >= 2


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3.581), (-0.02, 0.41), (0, 811), (0, 1e-5), (12.3, 12.4), (5, 5)])
def test_ticks_are_round_and_enclose(low, high):
    ticks = nice_ticks(low, high, 5)
    steps = {round(b - a, 12) for a, b in zip(ticks[:-1], ticks[1:], strict=True)}
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 12
    assert len(steps) == 1 and f"{steps.pop():e}"[0] in "125"


def test_numbers_are_short():
    values = (0, 0.25, 1500, 20_000, 3_000_000, 2.5e9, -0.5)
    assert [short(value) for value in values] == ["0", "0.25", "1,500", "20k", "3M", "2.5B", "-0.5"]


def test_evenly_keeps_both_ends():
    assert evenly(range(100), 4) == [0, 33, 66, 99] and evenly([1, 2], 4) == [1, 2]


def test_a_scale_clips():
    scale = Scale(0, 10)
    assert (scale(-1), scale(5), scale(11)) == (0, 50, 100)


def test_areas_of_bubbles_are_sizes():
    models = [("teacher", "teacher", 100.0, 0.8, 400.0, ""), ("student", "student", 300.0, -0.1, 100.0, "")]
    made = bubble_chart(models, x_label="x", y_label="y", y_format=lambda value: f"{value:.0%}")
    large, small = made.bubbles
    assert large.diameter == pytest.approx(2 * small.diameter, abs=0.1)
    assert large.x < small.x < 100 and 0 <= small.y < large.y <= 100
    assert made.y_ticks[0][1].startswith("-") and made.y_ticks[0][0] == 0
