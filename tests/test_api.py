"""The Python face: functions named like the commands, loaders, no side effects."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import rlhfkit
from rlhfkit.errors import DataError, UsageError
from rlhfkit.stages import names

RANKING = {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [[2], [0, 1]], "rater": "x"}


def test_import_is_light_and_submodules_stay_importable():
    code = (
        "import sys, rlhfkit; from rlhfkit import data, models, context; import rlhfkit.stages.sft; "
        "assert inspect.ismodule(rlhfkit.data) if 'inspect' in globals() else True; "
        "print([n for n in ('torch', 'numpy', 'click', 'msgspec', 'rich', 'rlhfkit.api') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_command_is_a_function_with_its_settings_as_keywords():
    for name in names():
        function = getattr(rlhfkit, name.replace("-", "_"))
        signature = inspect.signature(function)
        assert "quiet" in signature.parameters
        assert function.__doc__
        assert name.replace("-", "_") in dir(rlhfkit)
    assert inspect.signature(rlhfkit.sft).parameters["model"].default is inspect.Parameter.empty
    assert inspect.signature(rlhfkit.sft).parameters["lr_schedule"].default == "cosine"


def test_unknown_attribute():
    with pytest.raises(AttributeError):
        rlhfkit.no_such_thing  # noqa: B018


def test_records_in_records_out(capsys):
    pairs = list(rlhfkit.rank2pairs([RANKING]))
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("c", "a"), ("c", "b")]
    assert capsys.readouterr() == ("", "")


def test_one_file_name_will_do_and_output_writes_a_file(tmp_path):
    source, target = tmp_path / "rankings.jsonl", tmp_path / "pairs.jsonl"
    source.write_text(json.dumps(RANKING) + "\n")
    assert rlhfkit.rank2pairs(source, output=target) is None
    assert [json.loads(line)["chosen"] for line in target.open()] == ["c", "c"]
    assert len(list(rlhfkit.rank2pairs(str(source)))) == 2


def test_errors_are_exceptions():
    with pytest.raises(DataError):
        list(rlhfkit.rank2pairs([{"prompt": "p"}]))


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"max_pars": 1}, "rank2pairs has no setting max_pars", "did you mean max_pairs?"),
        ({"limit": -1}, "limit: -1 is out of range: it must be at least 0", None),
        ({"limit": "3"}, "limit: '3' is not a whole number", None),
        ({"pairs": "al"}, "pairs: 'al' is not one of all, adjacent, best-worst", "did you mean all?"),
    ],
)
def test_wrong_settings_are_refused_at_the_call(settings, message, hint):
    with pytest.raises(UsageError) as caught:
        rlhfkit.rank2pairs([RANKING], **settings)
    assert str(caught.value) == message
    assert caught.value.hint == hint


def test_missing_settings_are_named():
    with pytest.raises(UsageError, match="sft needs output"):
        rlhfkit.sft([], model="m")


def test_loader_refuses_an_unknown_precision():
    with pytest.raises(UsageError, match="'float31' is not one of"):
        rlhfkit.load_model("nowhere", dtype="float31")
