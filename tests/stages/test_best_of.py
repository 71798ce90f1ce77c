"""Best-of-n: what is chosen, and what it is expected to gain."""

import json
import math
import shlex
import sys
from itertools import combinations

import numpy as np
import pytest

from rlhfkit import context
from rlhfkit.data.jsonl import encode
from rlhfkit.errors import CannotCreate, DataError
from rlhfkit.stages.best_of import Config, run


def sample(scores, **more):
    completions = [{"text": f"t{i}", "score": s, "finish_reason": "stop"} for i, s in enumerate(scores)]
    return {"prompt": "p", "completions": completions, **more}


def chosen(rows, **settings):
    return [json.loads(encode(record)) for batch in run(rows, Config(**settings)) for record in batch]


def test_the_best_is_kept():
    (record,) = chosen([sample([1, 3, 2], id=5, model="sft", ranking=[[1], [2], [0]])])
    assert record == {
        "prompt": "p",
        "id": 5,
        "model": "sft best of 3",
        "completion": "t1",
        "score": 3,
        "finish_reason": "stop",
        "best_of": 3,
    }


def test_first_of_equals_and_first_n():
    assert chosen([sample([2, 2])])[0]["completion"] == "t0"
    record = chosen([sample([1, 2, 9])], n=2)[0]
    assert (record["completion"], record["best_of"]) == ("t1", 2)


def test_scored_by_a_scorer(tmp_path):
    program = tmp_path / "s.py"
    program.write_text(
        "import json, sys\nfor l in sys.stdin: print(json.dumps({'score': len(json.loads(l)['completion'])}), flush=True)"
    )
    rows = [{"prompt": "p", "completions": ["a", "bbb", "cc"]}, {"prompt": "q", "completion": "x"}]
    records = chosen(rows, by=f"cmd:{shlex.quote(sys.executable)} {shlex.quote(str(program))}")
    assert [(r["completion"], r["score"], r["best_of"]) for r in records] == [("bbb", 3, 3), ("x", 1, 1)]


def test_curve_is_the_mean_over_all_subsets(tmp_path):
    """I45, by enumeration: n = 1 is the mean, n = N the best, in between the mean over subsets."""
    rng = np.random.default_rng(0)
    scores, gold = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    rows = [sample(s) for s in scores.tolist()]
    for row, values in zip(rows, gold.tolist(), strict=True):
        for completion, value in zip(row["completions"], values, strict=True):
            completion["gold"] = value
    path = tmp_path / "curve.json"
    chosen(rows, gold="gold", curve=str(path))
    points = json.loads(path.read_text())["best_of"]
    assert [p["n"] for p in points] == [1, 2, 4, 8]
    assert [p["kl"] for p in points] == pytest.approx([0, 0.1931, 0.6363, 1.2044], abs=1e-4)
    for point in points:
        by_prompt = [
            np.mean([g[max(subset, key=lambda i: s[i])] for subset in combinations(range(8), point["n"])])
            for s, g in zip(scores, gold, strict=True)
        ]
        assert point["gold"] == pytest.approx(np.mean(by_prompt))
        assert point["gold_se"] == pytest.approx(np.std(by_prompt, ddof=1) / math.sqrt(3))
    assert points[0]["score"] == pytest.approx(scores.mean())
    assert points[-1]["score"] == pytest.approx(scores.max(axis=1).mean())


def test_uneven_prompts_share_the_smaller_sizes(tmp_path):
    path = tmp_path / "curve.json"
    chosen([sample([1, 2, 3]), sample([1, 2, 3, 4, 5])], curve=str(path))
    assert [p["n"] for p in json.loads(path.read_text())["best_of"]] == [1, 2]


def test_what_is_told(tmp_path):
    class Ears(context.Reporter):
        def table(self, title, columns, rows):
            self.table_seen = title, columns, rows

    ears = Ears()
    with context.surroundings(ears, context.Invocation()):
        chosen([sample([1, 2]), sample([3, 5])])
    title, columns, rows = ears.table_seen
    assert title == "best of n: means over 2 prompts"
    assert columns == ["n", "KL (nats)", "score (± 95%)"]
    assert rows[0][:2] == ["1", "0.000"]
    assert rows[1][2].startswith("3.5")


def test_refusals(tmp_path):
    with pytest.raises(DataError, match=r"sample.completions\[0\].score: missing") as caught:
        chosen([{"prompt": "p", "completions": ["a", "b"]}])
    assert "--by SCORER" in caught.value.hint
    with pytest.raises(DataError, match=r"completions\[0\].gold: expected a number"):
        chosen([sample([1, 2])], gold="gold")
    taken = tmp_path / "curve.json"
    taken.write_text("mine")
    with pytest.raises(CannotCreate):
        chosen([sample([1, 2])], curve=str(taken))
    assert chosen([]) == []
