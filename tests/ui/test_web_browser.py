"""The page in a real Chromium: by keyboard alone, by dragging, with kills, reloads and two tabs."""

import json
import os
import re
import subprocess
import sys

import pytest

from rlhfkit.config import ReadConfig
from rlhfkit.data.records import Ranking, read_records
from tests.ui.webdriver import CHROMIUM, DRIVER, ENTER, ESCAPE, Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
XSS = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


class Rank:
    """`rlhfkit rank --web` on some samples."""

    def __init__(self, folder, count=20):
        self.output = folder / "rankings.jsonl"
        self.samples = folder / "samples.jsonl"
        rows = [
            {
                "id": i,
                "prompt": f"p{i} {XSS}",
                "completions": [f"{i} {c} {XSS} **b**" for c in "edcba"[: 2 + i % 4]],
            }
            for i in range(count)
        ]
        self.samples.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, *flags):
        command = [
            sys.executable,
            "-m",
            "rlhfkit",
            "rank",
            str(self.samples),
            "--web",
            "--no-browser",
            "--rater",
            "ann",
        ]
        self.process = subprocess.Popen(
            [*command, "-o", str(self.output), *flags],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"DISPLAY": ""},
        )
        line = self.process.stderr.readline()
        self.url = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", line)[0]
        return self.url

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def ended(self):
        status = self.process.wait(20)
        self.process.stderr.close()
        return status

    def decisions(self):
        journal = self.output.with_name(self.output.name + ".journal")
        return [json.loads(line) for line in journal.read_text().splitlines()]


@pytest.fixture
def browser():
    browser = Browser()
    yield browser
    assert not [line for line in browser.log() if "Content Security" in line["message"]]
    browser.close()


@pytest.fixture
def rank(tmp_path):
    rank = Rank(tmp_path)
    yield rank
    if rank.process.poll() is None:
        rank.kill()


LETTERS = "[...document.querySelectorAll('.card .text')].map((t) => t.textContent.split(' ')[1])"


TIERS = "[...document.querySelectorAll('.tier')].map((t) => t.textContent).join(' ')"


def shown(browser, done):
    """Letters of the completions once this many items are done."""
    browser.wait(
        f"document.querySelector('#count').textContent.startsWith('{done} of') && !document.body.ariaBusy"
    )
    return browser.script(f"return {LETTERS}")


def digits(letters):
    return "".join(str(letters.index(letter) + 1) for letter in sorted(letters))


def test_twenty_items_by_keyboard_with_three_kills(browser, rank):
    browser.open(rank.start())
    for done in range(20):
        letters = shown(browser, done)
        if done in (5, 9, 16):
            if done == 9:  # in the middle of an item
                browser.keys("1")
            rank.kill()
            if done == 16:  # and in the middle of saving
                browser.keys(digits(letters) + ENTER)
                browser.wait("!document.querySelector('#alert').hidden")
            browser.open(rank.start())
            assert shown(browser, done) == letters
        browser.keys(digits(letters) + ENTER)
    browser.wait("document.querySelector('#done-title').textContent === 'All done'")
    assert browser.script("return document.title") != "broken"
    assert not rank.output.exists()  # whole or not at all
    browser.keys(ENTER)
    assert rank.ended() == 0
    records = list(read_records([rank.output], Ranking, ReadConfig()))
    assert [record.id for record in records] == list(range(20))
    for record in records:
        count = 2 + record.id % 4
        assert record.tiers == [[i] for i in reversed(range(count))]  # a before b before c
        values = record.row.values
        assert sorted(values["shown_order"]) == list(range(count))
        assert 0 <= values["seconds"] < 120
        assert (values["rater"], values["flags"]) == ("ann", [])
    pairs = subprocess.run(
        [sys.executable, "-m", "rlhfkit", "rank2pairs", str(rank.output)], capture_output=True, check=True
    ).stdout
    assert len(pairs.splitlines()) == 5 * (1 + 3 + 6 + 10)


def test_ties_undo_skip_flag_rating_and_note(browser, rank):
    browser.open(rank.start())
    for done in range(2):
        browser.keys(digits(shown(browser, done)) + ENTER)
    letters = shown(browser, 2)  # four of them
    browser.keys("12" + "u" + "t" + "3" + "4")  # 1 = 3, then 4; 2 is left and comes last
    browser.keys("r5" + "f" + "n" + "why? 12s" + ESCAPE + ENTER)
    shown(browser, 3)
    browser.keys("s")
    shown(browser, 4)
    browser.keys("u" * 1)  # back to the one skipped
    browser.wait("document.querySelector('#alert').textContent.includes('former answer')")
    browser.keys("12" + ENTER)  # five, so three are left out: asked once
    browser.wait("document.querySelector('#alert').textContent.includes('3, 4, 5')")
    browser.keys(ENTER)
    shown(browser, 4)
    lines = [line for line in rank.decisions() if "decision" in line]
    order = lines[2]["shown_order"]
    tiers = [[order.index(i) for i in tier] for tier in lines[2]["ranking"]]
    assert [sorted(tier) for tier in tiers] == [[0, 2], [3], [1]]
    assert (lines[2]["flags"], lines[2]["note"]) == (["flagged"], "why? 12s")
    assert [lines[2]["ratings"][index] for index in order] == [None, None, None, 5]
    assert (lines[3]["ranking"], lines[4]["supersedes"]) == (None, lines[3]["decision"])
    assert [len(tier) for tier in lines[4]["ranking"]] == [1, 1]
    assert len(letters) == 4


def test_dragging(browser, rank):
    browser.open(rank.start())
    for done in range(3):
        shown(browser, done)
        browser.keys("s")
    shown(browser, 3)  # five completions
    for source, target, tiers in (
        (".card[data-place='1'] .grip", ".gap.last", "2"),
        (".card[data-place='3'] .badge", ".gap.last", "2 4"),
        (".card[data-place='0'] header", "[data-gap='0']", "1 2 4"),  # before both
        (".card[data-place='4'] .badge", "[data-tier='1']", "1 25 4"),  # onto the second
        ("[data-tier='2'] .chip", "[data-gap='0']", "4 1 25"),
    ):
        browser.drag(source, target)
        browser.wait(f"{TIERS} === {tiers!r}")
    browser.click(".card[data-place='2'] .badge")
    browser.wait(f"{TIERS} === '4 1 25 3'")
    browser.keys(ENTER)
    shown(browser, 4)
    line = rank.decisions()[-1]
    assert [sorted(line["shown_order"].index(i) for i in tier) for tier in line["ranking"]] == [
        [3],
        [0],
        [1, 4],
        [2],
    ]


def test_reload_keeps_the_draft(browser, rank):
    browser.open(rank.start())
    shown(browser, 0)
    browser.keys("s")
    letters = shown(browser, 1)
    browser.keys("31" + "f")
    browser.reload()
    assert shown(browser, 1) == letters
    assert browser.text("#ranking") == "31"
    browser.keys("u2" + ENTER)  # 3, 2, and 1 is left
    shown(browser, 2)
    line = rank.decisions()[-1]
    assert line["ranking"] == [[line["shown_order"][place]] for place in (2, 1, 0)]
    assert line["flags"] == ["flagged"]


def test_two_tabs_record_once(browser, rank):
    browser.open(rank.start())
    first = browser.tab()
    letters = shown(browser, 0)
    browser.new_tab()
    browser.open(rank.url.partition("?")[0])
    assert shown(browser, 0) == letters
    browser.keys("12" + ENTER)
    shown(browser, 1)
    browser.switch(first)
    browser.keys("21" + ENTER)
    browser.wait("document.querySelector('#alert').textContent.includes('another tab')")
    shown(browser, 1)
    (line,) = rank.decisions()
    assert line["ranking"] == [[line["shown_order"][0]], [line["shown_order"][1]]]


def test_markdown_is_shown_and_html_is_not(browser, rank):
    browser.open(rank.start())
    shown(browser, 0)
    assert browser.script("return document.querySelectorAll('.card strong').length") == 2
    assert XSS in browser.text(".card .text")
    browser.keys("m")
    assert browser.script("return document.querySelectorAll('.card strong').length") == 0
    assert "**b**" in browser.text(".card .text")
    assert browser.script("return document.querySelectorAll('main img, main script').length") == 0


@pytest.mark.parametrize("kind", ["laptop", "dark", "phone"])
def test_it_fits_and_can_be_read(rank, kind):
    settings = {"laptop": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 844, "phone": True}}[
        kind
    ]
    browser = Browser(**settings)
    try:
        browser.open(rank.start())
        shown(browser, 0)
        assert browser.script("return document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.script("return matchMedia('(prefers-color-scheme: dark)').matches") == (kind == "dark")
        assert browser.script(CONTRAST) >= 4.5
        assert (
            browser.script(
                "return [...document.querySelectorAll('button, input, textarea')].filter(NAMELESS)".replace(
                    "NAMELESS", NAMELESS
                )
            )
            == []
        )
    finally:
        browser.close()


NAMELESS = "(e) => !(e.textContent.trim() || e.labels?.length && e.closest('label').textContent.trim() || e.ariaLabel)"
#: The least contrast of any text with the nearest background behind it (WCAG 2).
CONTRAST = """
const channels = (c) => c.match(/[\\d.]+/g).map(Number);
const light = (c) => channels(c).slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => { for (; e; e = e.parentElement) {
  const c = getComputedStyle(e).backgroundColor; if ((channels(c)[3] ?? 1) > 0.5) return c; } return "rgb(255,255,255)"; };
let least = 21;
for (const e of document.querySelectorAll("body *")) {
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility() || e.matches(":disabled, :disabled *")) continue;
  const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
  least = Math.min(least, (a + 0.05) / (b + 0.05));
}
return least;
"""
