"""Text that is safe to show, and how talk looks."""

from __future__ import annotations

import io
import json
import unicodedata

import pytest

from rlhfkit.ui import progress
from rlhfkit.ui.terminal import TerminalReporter, display_width, format_table, safe, safe_json

CONTROLS = [
    *range(0x20),
    *range(0x7F, 0xA0),
    0xAD,
    0x061C,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
    *range(0xE0000, 0xE0080),
    *range(0xE0100, 0xE01F0),
    *range(0xD800, 0xDFFF, 64),
    0x3164,
    0x115F,
    0x034F,
    0x180E,
]


def is_harmless(char: str) -> bool:
    """By an independent rule: nothing of Unicode's "other" class, no line separator, nothing ignorable."""
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") and ord(char) != 0x3164


@pytest.mark.parametrize("code", CONTROLS)
def test_hidden_characters_are_written_out(code):
    text = f"a{chr(code)}b"
    shown = safe(text)
    assert all(map(is_harmless, shown))
    assert shown.startswith("a\\")
    assert shown.encode("ascii").decode("unicode_escape") == text


@pytest.mark.parametrize("text", ["plain", "Zürich 東京\u3000a\u00a0b", "❤\ufe0f 🙂", "שלום", "a\\x1b"])
def test_harmless_text_stays(text):
    assert safe(text) == text


def test_no_control_gets_through():
    everything = "".join(map(chr, [*range(0x10000), *range(0xE0000, 0xE1000)]))
    assert all(map(is_harmless, safe(everything)))


def test_json_lines_keep_their_meaning():
    record = {"text": "".join(map(chr, CONTROLS[:200])) + "\U000e0041"}
    line = json.dumps(record, ensure_ascii=False) + "\n"
    shown = safe_json(line)
    assert json.loads(shown) == record
    assert all(is_harmless(char) for char in shown[:-1])


def test_kept_characters_stay():
    assert safe("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_table_aligns_numbers_right_and_counts_wide_characters():
    lines = format_table(["name", "rate"], [["東京", "0.5"], ["b\n", "12.25"]])
    assert lines == ["name   rate", "----  -----", "東京    0.5", "b\\n   12.25"]
    assert display_width("e\u0301") == 1
    assert format_table(["a", "b"], []) == ["a  b", "-  -"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_masked_text_has_colours_only_where_they_are_wanted():
    pieces = [("Q: \x1b", False), ("yes", True)]

    def shown(stream, **environ):
        TerminalReporter(stream, environ=environ).masked_text("example", pieces)
        return stream.getvalue()

    assert shown(io.StringIO()) == "example\nQ: \\x1b[[yes]]\n"
    assert shown(Terminal(), TERM="xterm", NO_COLOR="1") == "example\nQ: \\x1b[[yes]]\n"
    assert shown(Terminal(), TERM="dumb") == "example\nQ: \\x1b[[yes]]\n"
    assert "\x1b[1;32myes\x1b[0m" in shown(Terminal(), TERM="xterm")


def test_silent_reporter_says_nothing():
    stream = io.StringIO()
    reporter = TerminalReporter(stream, silent=True, environ={})
    reporter.note("a")
    reporter.table("t", ["a"], [["b"]])
    reporter.progress("p", 3, "step").close()
    assert stream.getvalue() == ""
    assert reporter.started


def test_progress_lines_come_every_ten_seconds_and_at_the_end(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    bar = TerminalReporter(stream, environ={}).progress("sft", 50, "step")
    bar.update(10)  # a run that continues from step 10
    for done in range(11, 46):
        now[0] += 0.5
        bar.update(done, {"loss": 1 / done, "note": "x\x1b"})
    bar.close()
    assert stream.getvalue().splitlines() == [
        "sft: 30/50 steps, 2/s, loss 0.03333, note x\\x1b, 10.0s left",
        "sft: 45/50 steps, 2/s, loss 0.02222, note x\\x1b, took 17.5s",
    ]


def test_progress_always_shows_tokens_per_second():
    count = progress.Count(None, "steps")
    count.update(1, {**dict.fromkeys("abcdef", 1.0), "tokens_per_second": 12345.6})
    text = count.text()
    assert text.startswith("1 steps, ")
    assert text.endswith(", d 1, 12,346 tokens/s")


def test_durations():
    assert [progress.duration(s) for s in (0.04, 59.9, 61, 3599.7, 7384)] == [
        "0.0s",
        "59.9s",
        "1:01",
        "1:00:00",
        "2:03:04",
    ]


def test_lines_go_above_a_running_bar():
    stream = Terminal()
    reporter = TerminalReporter(stream, environ={"TERM": "xterm"})
    outer, inner = reporter.progress("ppo", 2, "step"), reporter.progress("rollout", None, "prompt")
    inner.update(1, {"loss": 0.5})
    reporter.note("[red]not markup[/x] " + "long " * 40)
    inner.close()
    outer.update(2)
    outer.close()
    shown = stream.getvalue()
    assert "[red]not markup[/x] " + "long " * 39 in shown
    assert "ppo" in shown
    assert "2/2 steps" in shown


class Broken(io.StringIO):
    def flush(self) -> None:
        raise BrokenPipeError


def test_a_closed_stream_is_no_error():
    stream = Broken()
    reporter = TerminalReporter(stream, environ={})
    reporter.note("a")
    reporter.note("b")
    assert stream.getvalue() == "a\n"
