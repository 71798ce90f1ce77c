"""The models of a PPO run: policy, reference, value network, and whatever scores the answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.data.windows import shard_digests
from rlhfkit.engine.rollout import Episode
from rlhfkit.engine.setup import Setup, digest_of_examples, model_digest, parameter_count
from rlhfkit.errors import UsageError
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.hub import resolve
from rlhfkit.models.loading import config_of, load_causal, load_scalar
from rlhfkit.models.transformer import Transformer
from rlhfkit.scorers import Scorable, Scorer, model_kind, open_scorer

if TYPE_CHECKING:
    from rlhfkit.scorers.config import ScorerConfig
    from rlhfkit.stages.ppo import Config

#: What --value-model calls by name; anything else is a directory.
VALUE_SOURCES = ("reward", "policy", "shared")


@dataclass
class Actors:
    """Policy and value model are trained; the reference is frozen."""

    policy: Transformer
    ref_policy: Transformer
    value_model: ScalarModel
    reward_parameters: int  # of the reward model; 0 for other scorers

    @property
    def shared(self) -> bool:
        """Is the value function a second head on the policy's trunk (Ziegler et al., 2019)?"""
        return self.value_model.backbone is self.policy

    @property
    def critic(self) -> nn.Module:
        """What the value function has for itself: a whole network, or the head on the policy's trunk."""
        return self.value_model.score if self.shared else self.value_model

    @staticmethod
    def open_scorer(
        spec: str, config: Config, setup: Setup, tokenizer: Tokenizer
    ) -> AbstractContextManager[EpisodeScorer]:
        """A scorer, as a context manager that scores episodes."""
        return EpisodeScorer(spec, config, setup, tokenizer)


def load_actors(config: Config, setup: Setup) -> Actors:
    """Load all models; the reference is a second copy of the policy unless --ref names another."""
    dtype, device = setup.dtype, setup.device
    reward = _reward_directory(config.reward)
    policy = load_causal(config.model, device=device)
    ref_policy = load_causal(config.ref or config.model, dtype=dtype, device=device)
    if ref_policy.config.vocab_size != policy.config.vocab_size:
        raise UsageError("its vocabulary differs from the policy's", where="--ref")
    freeze(ref_policy)
    value_model = _load_value_model(config, setup, policy, reward)
    if value_model.config.vocab_size != policy.config.vocab_size:
        raise UsageError(
            "its vocabulary differs from the policy's", where="--value-model", hint="use --value-model policy"
        )
    return Actors(policy, ref_policy, value_model, _size(reward) if reward else 0)


def _load_value_model(config: Config, setup: Setup, policy: Transformer, reward: str | None) -> ScalarModel:
    """The value network that --value-model names, or a head on the policy's trunk."""
    source = config.value_model or ("reward" if reward else "policy")
    if source == "shared":
        with torch.device("meta"):
            value_model = ScalarModel(policy.config)
        value_model.backbone, value_model.layout = policy, policy.layout
        value_model.score.to_empty(device=setup.device)
        nn.init.zeros_(value_model.score.weight)
        return value_model.eval()
    if source == "reward" and reward is None:
        raise UsageError(
            "the reward is not a model", where="--value-model reward", hint="use --value-model policy"
        )
    directory = {"reward": reward, "policy": config.model}.get(source, source)
    value_model = load_scalar(str(directory), device=setup.device, init_head=config.seed)
    if source == "policy":
        # A fresh random head would make the first advantages noise (Ziegler starts from zero).
        nn.init.zeros_(value_model.score.weight)
    elif config.value_head == "zero":
        nn.init.zeros_(value_model.score.weight)
        value_model.score_offset = 0.0
    return value_model


def _size(directory: str) -> int:
    """Parameters of a reward model, without its weights."""
    with torch.device("meta"):
        return parameter_count(ScalarModel(config_of(directory)))


def freeze(model: nn.Module) -> None:
    """No gradients, no gradient buffers."""
    model.requires_grad_(False)


def _reward_directory(spec: str) -> str | None:
    """The directory of a reward model, or None for other scorers."""
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in {"cmd", "http", "https", "lm"}:
        return None
    directory = resolve(rest if colon and scheme == "rm" else spec)
    return str(directory) if directory.is_dir() and model_kind(directory) == "rm" else None


def data_identity(config: Config, sequences: Sequence[Sequence[int]]) -> dict[str, object]:
    """Digests of everything but the settings that a PPO run's result depends on."""
    out: dict[str, object] = {
        "model": model_digest(config.model),
        "prompts": digest_of_examples([(ids, [False]) for ids in sequences]),
    }
    for name, path in (
        ("ref", config.ref),
        ("value_model", config.value_model if config.value_model not in VALUE_SOURCES else None),
        ("reward", _reward_directory(config.reward)),
    ):
        if path:
            out[name] = model_digest(path)
    if config.ptx:
        out["ptx"] = shard_digests(config.ptx)
    return out


class EpisodeScorer:
    """Scores episodes: a reward model that shares the policy's tokenizer reads the sampled tokens
    themselves; every other scorer gets the decoded text.
    """

    def __init__(self, spec: str, config: ScorerConfig, setup: Setup, tokenizer: Tokenizer) -> None:
        self._setup = setup
        self._tokenizer = tokenizer
        self._model: ScalarModel | None = None
        self._scorer: Scorer | None = None
        directory = _reward_directory(spec)
        if directory and Tokenizer.from_dir(directory).digest == tokenizer.digest:
            self._model = load_scalar(directory, dtype=setup.dtype, device=setup.device)
            freeze(self._model)
        else:
            self._scorer = open_scorer(spec, config)

    def __enter__(self) -> EpisodeScorer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._scorer is not None:
            try:
                if kind is None:
                    self._scorer.finish()
            finally:
                self._scorer.close()

    @torch.no_grad()
    def score(self, episodes: Sequence[Episode]) -> None:
        """Set `scorer_score` of every episode."""
        if self._model is not None:
            from rlhfkit.engine.preferences import score_sequences

            scores = score_sequences(
                self._model,
                [e.ids for e in episodes],
                tokens=self._setup.token_budget,
                pad_id=self._tokenizer.pad_id,
                device=self._setup.device,
            )
        else:
            assert self._scorer is not None
            scores = self._scorer.score([Scorable(e.id, e.prompt, e.text) for e in episodes])
        for episode, score in zip(episodes, scores, strict=True):
            episode.scorer_score = score
