"""The command, end to end within one process: files in, summary out."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rlhfkit import context
from rlhfkit.errors import CannotCreate, DataError, UsageError
from rlhfkit.stages.eval_winrate import Config, run

DATA = Path(__file__).parents[2].parent / "shared" / "data"
GOLD = "import json, sys\nfor l in sys.stdin: print(json.dumps({'score': len(json.loads(l)['completion'])}), flush=True)"


@pytest.fixture
def judge(tmp_path):
    program = tmp_path / "gold.py"
    program.write_text(GOLD)
    return f"cmd:{shlex.quote(sys.executable)} {shlex.quote(str(program))}"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)

    def samples(name, longest):
        return write(
            tmp_path / f"{name}.jsonl",
            [
                {
                    "id": i,
                    "prompt": f"p{i}",
                    "kind": "ab"[i % 2],
                    "completion": "x" * int(rng.integers(1, longest)),
                }
                for i in range(30)
            ],
        )

    return [samples("sft", 6), samples("ppo", 10)]


class Ears(context.Reporter):
    def __init__(self):
        self.warnings, self.tables, self.notes = [], [], []

    def warn(self, text):
        self.warnings.append(text)

    def note(self, text):
        self.notes.append(text)

    def table(self, title, columns, rows):
        self.tables.append((title, columns, rows))


@pytest.fixture
def ears():
    ears = Ears()
    with context.surroundings(ears, context.Invocation()):
        yield ears


def lengths(path):
    return [len(json.loads(line)["completion"]) for line in Path(path).open()]


def test_win_rate_of_files(files, judge, ears):
    summary = run(files, Config(judge=judge))
    values = [0.5 * ((p > s) + (p >= s)) for s, p in zip(*map(lengths, files), strict=True)]
    ppo = summary["models"]["ppo"]
    assert summary["baseline"] == "sft"
    assert ppo["win_rate"] == pytest.approx(np.mean(values), abs=1e-12)
    assert ppo["standard_error"] == pytest.approx(stats.sem(values), abs=1e-12)
    assert (ppo["wins"], ppo["losses"], ppo["ties"]) == tuple(values.count(v) for v in (1, 0, 0.5))
    assert ppo["avg_length"] == pytest.approx(np.mean(lengths(files[1])))
    assert summary["bradley_terry"]["ppo"]["rating"] > 1000
    assert summary["judge"] == judge
    json.dumps(summary, allow_nan=False)
    title, columns, rows = ears.tables[0]
    assert title == "win rate against sft"
    assert "equal length" not in columns
    assert [row[0] for row in rows] == ["sft", "ppo"]


def test_against_a_copy_of_itself(files, judge, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_text(Path(files[0]).read_text())
    rate = run([files[0], str(copy)], Config(judge=judge, length_control=True))["models"]["copy"]
    assert (rate["win_rate"], rate["ties"], rate["n"]) == (0.5, 30, 30)
    assert rate["length_controlled_winrate"] == pytest.approx(0.5)


def test_saved_judgements_give_the_same_summary(files, judge, tmp_path):
    saved = str(tmp_path / "judged.jsonl")
    one = run(files, Config(judge=judge, save_judgements=saved, length_control=True, by=("kind",)))
    two = run((), Config(judgements=(saved,), length_control=True, by=("kind",)))
    for key in ("baseline", "models", "bradley_terry", "head_to_head", "by", "paired", "elo"):
        assert one[key] == two[key]
    record = json.loads(Path(saved).read_text().partition("\n")[0])
    assert list(record)[:9] == [
        "id", "prompt", "model_a", "model_b", "completion_a", "completion_b", "preference", "order", "judge",
    ]  # fmt: skip
    assert record["kind"] == "a"
    with pytest.raises(CannotCreate):
        run(files, Config(judge=judge, save_judgements=saved))


def test_more_files_of_judgements_may_stand_as_inputs(tmp_path):
    rows = [{"model_a": "m", "model_b": "n", "preference": p, "id": i} for i, p in enumerate([1, 1, 0, 0.5])]
    one, two = write(tmp_path / "1.jsonl", rows[:2]), write(tmp_path / "2.jsonl", rows[2:])
    split = run((two,), Config(judgements=(one,), baseline="n"))
    assert split == run(rows, Config(baseline="n"))
    assert split["models"]["m"]["win_rate"] == 0.625


def test_output_file(files, judge, tmp_path):
    out = tmp_path / "summary.json"
    assert run(files, Config(judge=judge, output=str(out))) is None
    assert json.loads(out.read_text())["baseline"] == "sft"
    with pytest.raises(CannotCreate, match="exists"):
        run(files, Config(judge=judge, output=str(out)))


def test_names(files, judge, tmp_path):
    named = write(tmp_path / "x.jsonl", [{"id": 0, "prompt": "p0", "completion": "", "model": "own"}])
    assert list(run([*files, named], Config(judge=judge))["models"]) == ["sft", "ppo", "own"]
    summary = run([*files, named], Config(judge=judge, name=("a", "b", "c"), baseline="c"))
    assert summary["baseline"] == "c"
    assert set(summary["models"]) == {"a", "b", "c"}
    other = tmp_path / "other"
    other.mkdir()
    same_stem = write(other / "sft.jsonl", [{"id": 0, "prompt": "p0", "completion": ""}])
    with pytest.raises(DataError, match=r"sft answers this prompt in .* already") as caught:
        run([*files, same_stem], Config(judge=judge))
    assert "--name" in caught.value.hint
    assert list(run([files[0], same_stem], Config(judge=judge, name=("new", "old")))["models"]) == [
        "new",
        "old",
    ]


def test_compressed_and_byte_order_marked_files_keep_their_names(files, judge, tmp_path):
    import gzip

    packed = tmp_path / "best.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + Path(files[1]).read_bytes()))
    assert list(run([files[0], str(packed)], Config(judge=judge))["models"]) == ["sft", "best"]


def test_several_completions_are_clustered(judge, tmp_path):
    rows = [
        {"model": m, "prompt": f"p{i}", "completions": [{"text": "x" * (i + j + k)} for j in range(4)]}
        for m, k in (("a", 0), ("b", 1))
        for i in range(10)
    ]
    rate = run(rows, Config(judge=judge))["models"]["b"]
    assert (rate["n"], rate["prompts"], rate["win_rate"]) == (40, 10, 1.0)
    assert rate["ci_low"] < 1


def test_canary(files, judge, ears):
    summary = run(files, Config(judge=judge, canary=True))
    assert summary["canary"]["win_rate"] == 1.0
    assert summary["canary"]["n"] == 30
    assert set(summary["models"]) == {"sft", "ppo"}
    assert any("do not trust this judge" in w for w in ears.warnings)
    assert ears.tables[0][2][-1][0] == "(canary)"


def test_what_is_not_answered_is_left_out_and_told(files, judge, ears, tmp_path):
    part = write(
        tmp_path / "part.jsonl", [json.loads(line) for line in Path(files[1]).read_text().splitlines()[:20]]
    )
    summary = run([files[0], part], Config(judge=judge))
    assert summary["unanswered"] == {"sft": 0, "part": 10}
    assert summary["models"]["part"]["n"] == 20
    assert any("part lacks an answer to 10 prompts" in w for w in ears.warnings)


def test_dry_run_asks_nobody(files, tmp_path, ears):
    saved = tmp_path / "judged.jsonl"
    config = Config(judge="cmd:exit 1", dry_run=True, canary=True, save_judgements=str(saved))
    plan = run(files, config)
    assert (plan["prompts"], plan["completions"], plan["comparisons"]) == (30, 90, 60)
    assert not saved.exists()
    assert ears.tables[0][0] == "cmd:exit 1 would judge"


def test_unbeaten_model_is_told_and_finite(ears):
    rows = [{"model_a": "a", "model_b": "b", "preference": 1, "id": i} for i in range(5)]
    summary = run(rows, Config())
    assert summary["bradley_terry_prior"] == 1
    assert np.isfinite(summary["bradley_terry"]["a"]["theta"])
    assert any("average one" in n for n in ears.notes)


def test_tables_by_field(files, judge, ears):
    run(files, Config(judge=judge, by=("kind",)))
    title, columns, rows = ears.tables[1]
    assert title == "win rate against sft by kind"
    assert columns == ["kind", "ppo"]
    assert [row[0] for row in rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a judge or judgements"),
        ({"judge": "cmd:x", "judgements": ("f",)}, "--judge: cannot be used with --judgements"),
        ({"judgements": ("f",), "canary": True}, "--canary: needs --judge"),
        ({"judgements": ("f",), "save_judgements": "g"}, "--save-judgements: needs --judge"),
        ({"judge": "cmd:x", "difficulty": True}, "--difficulty: needs --length-control"),
        ({"judge": "cmd:x", "name": ("one",)}, "--name: 1 names for 2 files"),
        ({"judge": "cmd:x", "baseline": "pp"}, "--baseline: no model is called 'pp'"),
    ],
)
def test_usage(files, settings, message):
    with pytest.raises(UsageError) as caught:
        run(files, Config(**settings))
    assert message in str(caught.value)


def test_did_you_mean(files, judge):
    with pytest.raises(UsageError) as caught:
        run(files, Config(judge=judge, baseline="pp0"))
    assert caught.value.hint == "did you mean ppo?"


def test_bad_data(files, judge, tmp_path):
    with pytest.raises(DataError, match="only one model: sft"):
        run(files[:1], Config(judge=judge))
    with pytest.raises(UsageError, match="given twice"):
        run([files[0], files[0]], Config(judge=judge))
    stranger = write(tmp_path / "s.jsonl", [{"id": 99, "prompt": "other", "completion": ""}])
    with pytest.raises(DataError, match="s and sft answer no prompt in common"):
        run([*files, stranger], Config(judge=judge))
    with pytest.raises(UsageError, match="no record has a field 'color'"):
        run(files, Config(judge=judge, by=("color",)))
    with pytest.raises(DataError, match="no judgements"):
        run((), Config(judgements=(write(tmp_path / "empty.jsonl", []),)))
    half = write(tmp_path / "half.jsonl", [{"model_a": "a", "model_b": "b"}])
    with pytest.raises(DataError, match=r"half.jsonl:1: judgement.preference: missing"):
        run((), Config(judgements=(half,)))


@pytest.mark.skipif(not DATA.exists(), reason="no shared data")
def test_published_judgements_recomputed():
    path = DATA / "judgments_vicuna80_train.jsonl"
    rows = [json.loads(line) for line in path.open()]
    base = "vicuna-13b:20230322-clean-lang"
    summary = run((), Config(judgements=(str(path),), baseline=base))
    for name in {r["model_a"] for r in rows if r["model_b"] == base}:
        votes = [r["winner"] for r in rows if (r["model_a"], r["model_b"]) == (name, base)]
        values = [{"a": 1, "b": 0, "tie": 0.5}[v] for v in votes]
        found = summary["models"][name]
        assert found["win_rate"] == pytest.approx(np.mean(values), abs=1e-12)
        assert found["standard_error"] == pytest.approx(stats.sem(values), abs=1e-12)
        assert (found["wins"], found["losses"], found["ties"]) == tuple(
            votes.count(v) for v in ("a", "b", "tie")
        )


def test_judgements_need_no_torch(tmp_path):
    path = write(
        tmp_path / "j.jsonl", [{"model_a": "a", "model_b": "b", "preference": 1, "id": i} for i in (0, 1)]
    )
    program = (
        "import sys; from rlhfkit.cli.main import call;"
        f"assert call(['eval-winrate', '--judgements', {path!r}, '-q']) == 0;"
        "assert 'torch' not in sys.modules; assert 'scipy' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"]["b"]["win_rate"] == 0.0


def test_a_reward_model_as_judge_agrees_with_its_scores(tiny, tmp_path):
    from rlhfkit.stages import score

    prompts = [json.loads(line)["prompt"] for line in tiny.prompts.read_text().splitlines()[:20]]
    files, scores = [], []
    for name, text in (("one", " red"), ("two", " two two green")):
        files.append(write(tmp_path / f"{name}.jsonl", [{"prompt": p, "completion": text} for p in prompts]))
        batches = score.run([files[-1]], score.Config(reward=str(tiny.rm)))
        scores.append([record["score"] for batch in batches for record in batch])
    found = run(files, Config(judge=f"rm:{tiny.rm}"))["models"]["two"]
    assert found["wins"] == sum(b > a for a, b in zip(*scores, strict=True))
    assert found["losses"] == sum(b < a for a, b in zip(*scores, strict=True))
