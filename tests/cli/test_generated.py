"""The reference, man pages and completion scripts say what the commands say, and work."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from cli_helpers import TOP

from rlhfkit.cli import docs
from rlhfkit.stages import names

SCRIPTS = TOP / "completions"


def test_generated_files_are_current():
    assert docs.stale(TOP) == [], "run `python -m rlhfkit.cli.docs`"


def test_stale_files_are_found_and_mended(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    (tmp_path / "docs" / "reference.md").write_text("old")
    (tmp_path / "man" / "rlhfkit-gone.1").write_text("old")
    capsys.readouterr()
    assert docs.main(["--check"]) == 1
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == [
        "docs/reference.md",
        "man/rlhfkit-gone.1",
    ]
    assert docs.main([]) == 0
    assert not docs.stale(tmp_path)


def complete_in_bash(*words, cwd):
    """What bash offers for the last of `words`, with no program on the path."""
    code = (
        f'source "{SCRIPTS}/rlhfkit.bash"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_rlhfkit; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", code, "bash", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": ""},
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout != "\n" else []


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a dir").mkdir()
    (tmp_path / "a*file.jsonl").touch()
    return tmp_path


def test_bash_completes_commands_flags_choices_files(folder):
    def offered(*words):
        return complete_in_bash("rlhfkit", *words, cwd=folder)

    assert set(names()) | {"help", "--help", "--version"} == set(offered(""))
    assert offered("compl") == ["completion"]
    assert set(offered("help", "")) == set(names())
    assert {"--lr", "--lr-schedule"} == set(offered("sft", "--lr"))
    assert offered("sft", "--lr-schedule", "") == ["cosine", "linear", "constant"]
    assert offered("sft", "--lr-schedule", "=", "l") == ["linear"]
    assert offered("sft", "--lr-schedule", "=") == ["cosine", "linear", "constant"]
    assert offered("sft", "--lr", "") == []
    assert offered("sft", "-m", "a") == ["a dir"]
    assert offered("sft", "--eval", "a*") == ["a*file.jsonl"]
    assert set(offered("sft", "a")) == {"a dir", "a*file.jsonl"}
    assert offered("completion", "f") == ["fish"]
    assert offered("nothing", "") == []
    assert "--no-packing" in offered("sft", "--no-")


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes_commands_flags_choices_files(folder):
    def offered(line):
        code = f'source "{SCRIPTS}/rlhfkit.fish"; complete -C "{line}"'
        environ = {**os.environ, "HOME": str(folder)}
        done = subprocess.run(
            ["fish", "--no-config", "-c", code],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environ,
            check=True,
        )
        assert done.stderr == ""
        return {line.split("\t")[0] for line in done.stdout.splitlines()}

    assert set(names()) | {"help"} == offered("rlhfkit ")
    assert offered("rlhfkit help compl") == {"completion"}
    assert offered("rlhfkit sft --lr") == {"--lr", "--lr-schedule"}
    assert offered("rlhfkit sft --lr-schedule ") == {"cosine", "linear", "constant"}
    assert offered("rlhfkit sft -m a") == {"a dir/"}
    assert offered("rlhfkit completion ") == {"bash", "zsh", "fish"}
    assert offered("rlhfkit sft --lr ") == set()
    assert "a*file.jsonl" in {name.replace("\\", "") for name in offered("rlhfkit sft a")}


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_hands_its_own_completion_the_flags_of_the_command():
    """The script runs with zsh's helpers replaced by printers."""
    code = """
    functions[compdef]='true'
    _arguments() { print -rl -- "$@"; }
    _describe() { print -rl -- "${(P@)4}"; }
    source "$1"; shift
    words=("$@"); CURRENT=$#
    _rlhfkit
    """

    def offered(*words):
        done = subprocess.run(
            ["zsh", "-f", "-c", code, "zsh", str(SCRIPTS / "_rlhfkit"), "rlhfkit", *words],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    listed = offered("")
    assert set(names()) <= {line.split(":")[0] for line in listed}
    flags = offered("sft", "--")
    assert any(
        line.startswith("--lr-schedule=[") and line.endswith(":(cosine linear constant)") for line in flags
    )
    assert "*:DEMOS:_files" in flags
    assert "*:argument:(bash zsh fish)" in offered("completion", "")


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
def test_man_pages_have_no_errors():
    pages = sorted(map(str, (TOP / "man").glob("*.1")))
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "error", *pages], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_completion_command_prints_what_stands_in_the_repository():
    from rlhfkit.stages.completion import Config, run

    for shell, name in docs.COMPLETIONS.items():
        assert "".join(run([shell], Config())) == (SCRIPTS / name).read_text(encoding="utf-8")
