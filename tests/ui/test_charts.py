"""Pictures as text: widths, marks, plain ASCII where the locale wants it, and where points land."""

import pytest

from rlhfkit.ui.charts import HEIGHT, render, terminal_columns, terminal_unicode
from rlhfkit.ui.figures import Bar, Bars, Grid, Line, Matrix, Panel
from tests.ui.test_plots import FIGURES


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("width", [40, 79, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_fits_the_width(name, width, unicode):
    text = render(FIGURES[name], width, unicode=unicode)
    if name != "matrix":
        long_names = max(len(bar.label) for bar in getattr(FIGURES[name], "bars", [Bar("", 0)]))
        assert max(map(len, text.splitlines())) <= max(width, long_names + 40)
    assert text.endswith("\n")
    assert "\x1b" not in text
    assert unicode or text.isascii()


def rows(text):
    return [line.partition("|")[2] for line in text.splitlines() if "|" in line]


def test_a_rising_line_rises():
    text = render(Grid("", [Panel("t", "x", "y", [Line("a", [0, 1], [0, 1])])]), 40, unicode=False)
    marks = [row.find("*") for row in rows(text)]
    assert len(marks) == HEIGHT
    assert marks == sorted(marks, reverse=True)
    assert marks[-1] == 0
    assert rows(text)[0].rstrip().endswith("*")
    assert [text.splitlines()[1].split("|")[0].strip(), text.splitlines()[12].split("|")[0].strip()] == [
        "1",
        "0",
    ]


def test_braille_of_two_points():
    text = render(Grid("", [Panel("t", "x", "y", [Line("a", [0, 1], [0, 0])])]), 40)
    drawn = [c for c in text if 0x2800 < ord(c) < 0x2900]
    assert drawn
    assert set(drawn) <= {"⠉", "⠒", "⠤", "⣀"}  # a level line of one raster row


def test_several_curves_have_marks_and_a_legend():
    lines = [Line("one", [0, 1], [0, 0]), Line("two", [0, 1], [1, 1], 1)]
    text = render(Grid("", [Panel("t", "x", "y", lines, level=0.5)]), 60, unicode=False)
    assert "* one" in text
    assert "x two" in text
    assert any(set(row) == {"-"} for row in rows(text))


def test_gaps_and_no_data():
    nan = float("nan")
    assert render(Grid("", [Panel("t", "x", "y", [Line("a", [0, 1, 2], [nan, 5.0, nan])])]), 40)
    assert render(Grid("", [Panel("t", "x", "y", [Line("a", [], [])])]), 40)


def test_bars_are_as_long_as_their_values():
    bars = Bars("t", "y", [Bar("a", 0.25), Bar("b", 0.5), Bar("c", 1.0)])
    lengths = [line.count("#") for line in render(bars, 80, unicode=False).splitlines()[1:]]
    assert lengths[0] == pytest.approx(lengths[2] / 4, abs=1.5)
    assert lengths[1] == pytest.approx(lengths[2] / 2, abs=1.5)


def test_bars_show_interval_and_numbers():
    text = render(Bars("t", "y", [Bar("ppo", 0.6, 0.5, 0.7)], level=0.5), 80)
    assert "├" in text
    assert "●" in text
    assert text.rstrip().endswith("0.600 [0.500, 0.700]")


def test_ladder_is_sorted():
    text = render(FIGURES["ladder"], 60, unicode=False)
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["x", "y"]
    assert "#" not in text


def test_hostile_names_are_made_safe():
    evil = "\x1b[2J\u202eabc"
    for figure in (
        Bars(evil, "y", [Bar(evil, 0.5)]),
        Matrix(evil, [evil], [[0.5]]),
        Grid(evil, [Panel(evil, evil, evil, [Line(evil, [0, 1], [0, 1]), Line(evil, [0, 1], [0, 1], 1)])]),
    ):
        text = render(figure, 80)
        assert "\x1b" not in text
        assert "\u202e" not in text


@pytest.mark.parametrize(
    ("environ", "unicode"),
    [
        ({}, True),
        ({"LANG": "de_DE.UTF-8"}, True),
        ({"LANG": "C.utf8"}, True),
        ({"LANG": "C"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),  # Python's own doing
        ({"LC_CTYPE": "C.UTF-8"}, True),
        ({"LC_ALL": "POSIX", "LANG": "en_US.UTF-8"}, False),
        ({"LANG": "en_US.ISO-8859-1"}, False),
    ],
)
def test_locale(environ, unicode):
    assert terminal_unicode(environ) is unicode


def test_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "123")
    assert terminal_columns() == 123
