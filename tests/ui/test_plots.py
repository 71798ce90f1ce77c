"""Pictures: what is in them, that they are files of their format, and that they never change by themselves."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from io import BytesIO

import pytest

from rlhfkit.errors import RlhfkitError, UsageError
from rlhfkit.ui import plots
from rlhfkit.ui.figures import Bar, Bars, Grid, Line, Matrix, Panel

LINES = [
    Line("a · training", [0, 1, 2], [1.0, 0.5, 0.2], 0, 0, raw=[1.0, 0.4, 0.3]),
    Line("a · held out", [0, 2], [1.1, 0.4], 0, 1, low=[1.0, 0.3], high=[1.2, 0.5]),
    Line("b · training", [0, 1, 2], [1.0, float("nan"), 0.3], 1, 0, points=True),
    Line("b · fit", [0, 1, 2], [1.0, 0.6, 0.3], 1, 1, fit=True),
    Line("c · cloud", [0, 1, 2], [1e-6, 2e-6, 3e-6], 2, 1, cloud=True),
]
PANEL = Panel("Loss", "step", "nats", LINES, level=0.5)
BARS = [
    Bar("sft", 0.5, plain=True),
    Bar("ppo", 0.66, 0.61, 0.7),
    Bar("a very long name $of_a$ model", 0.2, 0.1, 0.3),
]
FIGURES = {
    "one": Grid("", [PANEL]),
    "many": Grid(
        "Title", [PANEL, Panel("Rate", "step", "", [Line("r", [10, 20], [1e-5, 2e-5])], fraction=True)] * 3
    ),
    "diagonal": Grid("", [Panel("Calibration", "x", "y", [LINES[0]], diagonal=True, fraction=True)]),
    "single point": Grid("", [Panel("P", "x", "y", [Line("p", [3], [20000.0])])]),
    "bars": Bars("Win rate", "fraction", BARS, level=0.5, level_label="even"),
    "two series": Bars(
        "Win rate", "fraction", [*BARS, Bar("ppo", 0.7, 0.6, 0.8, 1)], ("one", "two"), level=0.5
    ),
    "ladder": Bars("Ratings", "rating", [Bar("x", 1100, 1050, 1150), Bar("y", 900)], ladder=True, digits=0),
    "matrix": Matrix(
        "Wins", ["a", "b"], [[None, 0.95], [0.05, None]], "row", "column", [["", "n=9"], ["n=9", ""]]
    ),
}


def drawn(figure, picture):
    file = BytesIO()
    plots.draw(figure, file, picture)
    return file.getvalue()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_png_of_some_size(name):
    data = drawn(FIGURES[name], "png")
    assert data.startswith(b"\x89PNG")
    assert 4_000 < len(data) < 400_000


@pytest.mark.parametrize("name", ["many", "two series", "matrix"])
def test_svg_is_xml_without_a_date(name):
    data = drawn(FIGURES[name], "svg")
    assert ET.fromstring(data).tag.endswith("svg")
    assert b"dc:date" not in data


def test_same_bytes_in_another_process(tmp_path):
    program = (
        "import sys; sys.path.insert(0, 'tests'); from tests.ui.test_plots import FIGURES, drawn;"
        "open(sys.argv[1], 'wb').write(drawn(FIGURES['many'], 'svg')); open(sys.argv[2], 'wb').write(drawn(FIGURES['bars'], 'png'))"
    )
    here = {"svg": drawn(FIGURES["many"], "svg"), "png": drawn(FIGURES["bars"], "png")}
    files = [tmp_path / "x.svg", tmp_path / "x.png"]
    subprocess.run([sys.executable, "-c", program, *map(str, files)], check=True)
    assert files[0].read_bytes() == here["svg"]
    assert files[1].read_bytes() == here["png"]


def test_a_matplotlibrc_changes_nothing():
    import matplotlib

    before = drawn(FIGURES["bars"], "svg")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False}):
        assert drawn(FIGURES["bars"], "svg") == before
        assert matplotlib.rcParams["font.size"] == 30


def test_what_is_drawn(monkeypatch):
    """The axes hold the data, the interval and the labels."""
    kept = {}
    original = plots._draw_bars
    monkeypatch.setattr(plots, "_draw_bars", lambda bars: kept.setdefault("canvas", original(bars)))
    drawn(FIGURES["bars"], "png")
    (ax,) = kept["canvas"].axes
    assert [round(p.get_height(), 3) for p in ax.patches] == [0.5, 0.66, 0.2]
    assert ax.get_ylabel() == "fraction"
    assert [t.get_text().replace("\n", " ") for t in ax.get_xticklabels()] == [bar.label for bar in BARS]
    segments = [s for c in ax.collections for s in c.get_segments()]
    assert sorted((round(s[0][1], 3), round(s[1][1], 3)) for s in segments) == [(0.1, 0.3), (0.61, 0.7)]
    assert ax.get_ylim()[0] == 0


def test_runs_are_told_apart_without_colour(monkeypatch):
    kept = {}
    original = plots._draw_grid
    monkeypatch.setattr(plots, "_draw_grid", lambda grid: kept.setdefault("canvas", original(grid)))
    lines = [Line(f"run {i}", [0, 1, 2], [i, i, i], i, points=True) for i in range(7)]
    drawn(Grid("", [Panel("t", "x", "y", lines)]), "png")
    marks = {(line.get_color(), line.get_marker()) for line in kept["canvas"].axes[0].lines}
    assert len(marks) == 7
    assert len({mark for _, mark in marks}) == 7


def test_format_by_name():
    assert plots.picture_format("a/b.PNG") == "png"
    with pytest.raises(UsageError, match=r"a.pdf: neither .png nor .svg"):
        plots.picture_format("a.pdf")


def test_without_matplotlib_there_is_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RlhfkitError) as caught:
        plots.require_matplotlib()
    assert 'pip install "rlhfkit[plot]"' in caught.value.hint
