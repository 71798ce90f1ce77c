"""Names of the hub: from its cache, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_models import make, saved

from rlhfkit.errors import InputMissing
from rlhfkit.models import hub
from rlhfkit.models.loading import load_causal

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds some/model, laid out as huggingface_hub does."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    hub._snapshot.cache_clear()
    source = saved(make("llama"), tmp_path / "source")
    repository = tmp_path / "hub" / "models--some--model"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for number, file in enumerate(source.iterdir()):
        shutil.move(file, repository / "blobs" / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_cached_name_is_found_with_and_without_revision(cache):
    assert hub.resolve("some/model").resolve() == cache.resolve()
    assert hub.resolve("some/model@main").resolve() == cache.resolve()
    assert hub.resolve(f"some/model@{REVISION}").resolve() == cache.resolve()
    assert load_causal("some/model").config.num_layers == 3


def test_what_is_not_there_says_what_to_do(cache):
    with pytest.raises(InputMissing, match="some/other") as caught:
        load_causal("some/other@v1")
    assert "hf download some/other --revision v1" in (caught.value.hint or "")
    assert "\n" not in str(caught.value)


def test_paths_are_not_names(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_snapshot", None)  # calling it would be an error
    (tmp_path / "runs").mkdir()
    for path in ("runs/sft", "/no/where", "../x", "plain", "a/b/c", "runs"):
        assert hub.resolve(path) == Path(path)
    with pytest.raises(InputMissing, match="no such model directory"):
        load_causal("runs/sft")
