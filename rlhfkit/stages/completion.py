"""Print the tab completion script of a shell.

Packages install these scripts where shells look for them; by hand, for example:

  bash   rlhfkit completion bash > ~/.local/share/bash-completion/completions/rlhfkit
  zsh    rlhfkit completion zsh > "${fpath[1]}/_rlhfkit"
  fish   rlhfkit completion fish > ~/.config/fish/completions/rlhfkit.fish
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhfkit.config import CommonConfig, Inputs
from rlhfkit.stages import load, sections
from rlhfkit.ui.completion import Completed, script
from rlhfkit.ui.flags import all_flags

INPUTS = Inputs("bash|zsh|fish", "The shell.", kind="path", required=True, stdin=False, single=True)
OUTPUT = "text"
EXAMPLES = (
    "rlhfkit completion bash > ~/.local/share/bash-completion/completions/rlhfkit",
    "source <(rlhfkit completion zsh)",
)


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Settings of `completion`."""


def run(inputs: Sequence[str], config: Config) -> Iterator[str]:
    """Yield the script of the one shell named."""
    yield script_for(inputs[0])


def script_for(shell: str) -> str:
    """The completion script over all commands."""
    stages = [load(name) for _, members in sections() for name in members]
    return script(
        shell,
        [Completed(stage.name, stage.summary, stage.inputs, all_flags(stage.config)) for stage in stages],
    )
