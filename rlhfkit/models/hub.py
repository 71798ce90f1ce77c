"""Names of the Hugging Face hub: `Qwen/Qwen2.5-0.5B` or `Qwen/Qwen2.5-0.5B@REVISION` to a local directory."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from rlhfkit.context import note
from rlhfkit.errors import DataError, InputMissing
from rlhfkit.models.directory import CONVERT, FOREIGN

NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
#: what is read of a repository; copies of the weights in other forms stay where they are
FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def resolve(name: str | os.PathLike[str]) -> Path:
    """A directory for `name`: itself where it exists, else a hub name, downloaded or from the hub's cache.

    The environment's HF_HOME, HF_HUB_OFFLINE and HF_TOKEN are honoured. A name whose first part is a
    directory here is a path with a slip in it, and no reason to ask the network. InputMissing if the hub
    does not have it or cannot be reached; DataError for a file of weights that is not read.
    """
    path = Path(name)
    if path.is_file() and path.name.endswith(FOREIGN):
        what = "weights in a format that can run code or is not read; a model is a directory with safetensors"
        raise DataError(what, where=str(path), hint=CONVERT)
    match = NAME.fullmatch(os.fspath(name))
    if path.exists() or match is None or path.parent.is_dir():
        return path
    return _snapshot(match["repo"], match["revision"])


@lru_cache
def _snapshot(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    # The hub client raises dozens of kinds of its own and of its HTTP library.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        at = f" --revision {revision}" if revision else ""
        raise InputMissing(
            f"neither a directory here nor to be had from the Hugging Face hub: {reason[:200]}",
            where=f"{repo}@{revision}" if revision else repo,
            hint=f"where the hub can be reached, `hf download {repo}{at}` puts it into the cache; "
            "or give a model directory",
        ) from None
    note(f"{repo}: revision {found.name}")
    return found
