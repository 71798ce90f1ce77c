"""A flag beats the environment beats the file beats the default, for every type of setting."""

from __future__ import annotations

import json
import re

import pytest

# field -> (flag words, environment text, TOML, the three values, default)
SETTINGS = {
    "count": (["--count", "2"], "3", "4", (2, 3, 4), 1),
    "deep": (["--deep", "-2"], "3", "-4", (-2, 3, -4), None),
    "ratio": (["--ratio", "0.25"], "0.75", "1", (0.25, 0.75, 1.0), 0.5),
    "name": (["--name", "f"], "e e", '"t"', ("f", "e e", "t"), "plain"),
    "mode": (["--mode", "slow"], "slow", '"slow"', ("slow", "slow", "slow"), "fast"),
    "level": (["--level", "2"], "1", "2", (2, 1, 2), None),
    "tags": (["--tags", "a b", "--tags", "c"], "d e", '["f g"]', (["a b", "c"], ["d", "e"], ["f g"]), []),
    "loud": (["-l"], "yes", "true", (True, True, True), False),
    "packing": (["--no-packing"], "0", "false", (False, False, False), True),
    "compile": (["--no-compile"], "1", "true", (False, True, True), False),
    "quiet": (["-q"], "true", "true", (True, True, True), False),
    "limit": (["--limit", "5"], "6", "7", (5, 6, 7), None),
}


@pytest.fixture
def settle(run_fake):
    def settle(*words, env=None, config=None, cwd=None):
        done = run_fake("settle", "-m", "x", *words, env=env)
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in done.stdout.splitlines()]
        return {r["name"]: (r["value"], r["source"]) for r in records}

    return settle


def test_every_source_of_every_type(settle, tmp_path):
    flags = [word for words, *_ in SETTINGS.values() for word in words]
    env = {f"RLHFKIT_SETTLE_{name.upper()}": text for name, (_, text, *_) in SETTINGS.items()}
    lines = [f"{name} = {toml}" for name, (_, _, toml, *_) in SETTINGS.items()]
    (tmp_path / "conf.toml").write_text("\n".join(["[settle]", *lines]))
    config = ["--config", "conf.toml"]

    def expected(level, source):
        return {name: (values[level], source) for name, (_, _, _, values, _) in SETTINGS.items()}

    def seen(*words, env=None):
        return {name: value for name, value in settle(*words, env=env).items() if name in SETTINGS}

    assert seen(*flags, *config, env=env) == expected(0, "flag")
    assert seen(*flags) == expected(0, "flag")
    assert seen(*config, env=env) == expected(1, "environment")
    assert seen(*config) == expected(2, "file")
    assert seen(env={**env, "RLHFKIT_SETTLE_NAME": ""})["name"] == ("plain", "default")
    assert seen() == {name: (default, "default") for name, (*_, default) in SETTINGS.items()}


def test_the_config_file_may_be_named_in_the_environment(settle, tmp_path):
    (tmp_path / "conf.toml").write_text("[settle]\ncount = 4\n")
    assert settle(env={"RLHFKIT_SETTLE_CONFIG": "conf.toml"})["count"] == (4, "file")


def test_keys_may_have_dashes_and_required_settings_come_from_anywhere(run_fake, tmp_path):
    (tmp_path / "conf.toml").write_text(
        '[settle]\nmodel = "y"\non-bad-line = "skip"\n[copy-rows]\ntimes = 2\n'
    )
    assert run_fake("settle", "--config", "conf.toml").returncode == 0
    done = run_fake("copy-rows", "--config", "conf.toml", input='{"a":1}\n')
    assert done.stdout.count("\n") == 2
    assert run_fake("settle", env={"RLHFKIT_SETTLE_MODEL": "z"}).returncode == 0


def test_a_repeatable_variable_may_be_a_json_list(settle):
    assert settle(env={"RLHFKIT_SETTLE_TAGS": '["a b", "c"]'})["tags"] == (["a b", "c"], "environment")


def test_further_spellings_and_equals_signs(settle):
    assert settle("--share=0.125")["ratio"] == (0.125, "flag")
    assert settle("-ml")["model"] == ("l", "flag")
    assert settle("--name=--loud")["name"] == ("--loud", "flag")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[settle]\ncuont = 1", "conf.toml: error: settle has no setting cuont\nhint: did you mean count?"),
        ("[setle]\ncount = 1", "conf.toml: error: no command is called setle\nhint: did you mean settle?"),
        ("count = 1", "conf.toml: error: no command is called count\nhint: settings stand in a table"),
        ("settle = 1", "conf.toml: error: settle is not a table"),
        ("[settle]\ncount = 1.0", "conf.toml: settle.count: error: 1.0 is not a whole number"),
        ("[settle]\ncount = true", "conf.toml: settle.count: error: True is not a whole number"),
        ("[settle]\ncount = 0", "conf.toml: settle.count: error: 0 is out of range: it must be at least 1"),
        ("[settle]\nratio = inf", "conf.toml: settle.ratio: error: inf is not a finite number"),
        ("[settle]\nname = 1", "conf.toml: settle.name: error: 1 is not a string"),
        ("[settle]\nmode = 'fats'", "conf.toml: settle.mode: error: 'fats' is not one of fast, slow"),
        ("[settle]\nloud = 1", "conf.toml: settle.loud: error: 1 is not true or false"),
        ("[settle]\ntags = 'a'", "conf.toml: settle.tags: error: 'a' is not a list"),
        ("[settle]\non_bad_line='skip'\non-bad-line='skip'", "conf.toml: error: on_bad_line stands twice"),
        ("[settle]\ncount = ,", "conf.toml:2:9: error: Invalid value"),
    ],
)
def test_a_wrong_file_is_told_with_its_place(run_fake, tmp_path, toml, message):
    (tmp_path / "conf.toml").write_text(toml)
    done = run_fake("settle", "-m", "x", "--config", "conf.toml")
    assert done.returncode == 2
    assert done.stderr.startswith(message)


def test_a_missing_file_is_missing_input(run_fake):
    done = run_fake("settle", "-m", "x", "--config", "none.toml")
    assert (done.returncode, done.stderr) == (66, "none.toml: error: no such file or directory\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RLHFKIT_SETTLE_CUONT", "settle has no such setting\nhint: did you mean RLHFKIT_SETTLE_COUNT?"),
        ("RLHFKIT_SETLE_COUNT", "no command knows this .*\nhint: did you mean RLHFKIT_SETTLE_COUNT?"),
        ("RLHFKIT_API_KYE", "no command knows this .*\nhint: did you mean RLHFKIT_API_KEY?"),
        ("RLHFKIT_XYZZY", "no command knows this .*\nhint: variables are"),
    ],
)
def test_a_wrong_variable_is_told_with_a_suggestion(run_fake, name, message):
    done = run_fake("settle", "-m", "x", env={name: "1"})
    assert done.returncode == 2
    assert re.match(f"rlhfkit settle: error: {name}: {message}", done.stderr)


def test_a_wrong_value_in_a_variable_names_the_variable(run_fake):
    done = run_fake("settle", "-m", "x", env={"RLHFKIT_SETTLE_LOUD": "maybe"})
    assert done.stderr.startswith(
        "rlhfkit settle: error: RLHFKIT_SETTLE_LOUD: 'maybe' is neither true nor false"
    )


def test_variables_of_other_commands_and_the_api_key_are_no_business_of_this_one(settle):
    settle(env={"RLHFKIT_COPY_ROWS_TIMES": "2", "RLHFKIT_API_KEY": "secret"})
