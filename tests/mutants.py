"""Break known places of the maths one at a time; the tests must notice every one.

    python tests/mutants.py            # all; prints survivors and exits 1 if there are any
    python tests/mutants.py whiten     # those whose description contains the word

The whole list takes some minutes; `pytest -m slow tests/test_mutants.py` runs it too.

Each mutant is one replaced piece of text in a copy of the package, and the tests that should fail. A piece
that is not found exactly once is an error, so the list cannot silently go stale.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    what: str
    file: str  # below rlhfkit/
    old: str
    new: str
    tests: str  # below tests/


COMMON, LOGPROBS = "objectives/common.py", "objectives/logprobs.py"
PPO, KL, RANK = "objectives/ppo.py", "objectives/kl.py", "objectives/preference.py"
DRAW, GENERATE = "engine/draw.py", "engine/generate.py"
T_COMMON, T_LOGPROBS = "objectives/test_common.py", "objectives/test_logprobs.py"
T_PPO, T_KL, T_RANK = "objectives/test_ppo.py", "objectives/test_kl.py", "objectives/test_preference.py"
T_DRAW, T_GENERATE = "engine/test_draw.py", "engine/test_generate.py"
ROLLOUT, STEP = "engine/rollout.py", "engine/ppo.py"
ITERATION, T_SHARED = "engine/iteration.py", "engine/test_shared_value.py"
T_STEP = "engine/test_ppo_arithmetic.py"
SCALE, T_SCALE = "engine/reward_scale.py", "engine/test_reward_scale.py"
T_COMMAND = "stages/test_ppo_command.py"
SFT, T_SFT = "stages/sft.py", "stages/test_sft.py"
T_TRAINING = "engine/test_training.py"
CENTER, T_RM = "engine/centering.py", "stages/test_train_rm.py"

MUTANTS = [
    # whitening and statistics
    Mutant("whiten: mean is moved when it should stay", COMMON, "if not shift_mean:", "if shift_mean:", T_COMMON),
    Mutant("whiten: unbiased variance", COMMON, "torch.rsqrt(variance + 1e-8)", "torch.rsqrt(variance * mask.sum() / (mask.sum() - 1) + 1e-8)", T_COMMON),
    Mutant("whiten: sign", COMMON, "white = (wide - mean)", "white = (mean - wide)", T_COMMON),
    Mutant("whiten: padding in the variance", COMMON, "variance = masked_mean((wide - mean) ** 2, mask, reduce=reduce)\n    white", "variance = ((wide - mean) ** 2).mean()\n    white", T_COMMON),
    Mutant("masked_sum: polarity", COMMON, "torch.where(mask, x, 0.0).sum()", "torch.where(mask, 0.0, x).sum()", T_COMMON),
    Mutant("masked_sum: by multiplication, so NaN leaks", COMMON, "torch.where(mask, x, 0.0).sum()", "(x * mask).sum()", T_COMMON),
    Mutant("statistics: each process for itself", COMMON, "(reduce(totals) if reduce else totals)", "totals", T_COMMON),
    Mutant("explained variance: ratio of variances upside down", COMMON, "1 - error / variance", "1 - variance / error", T_COMMON),
    # log-probabilities
    Mutant("logprobs: temperature multiplies", LOGPROBS, "logits / temperature", "logits * temperature", T_LOGPROBS),
    Mutant("logprobs: no temperature", LOGPROBS, "if temperature != 1.0:", "if False:", T_LOGPROBS),
    Mutant("logprobs: softmax in the model's precision", LOGPROBS, "head(hidden).float()", "head(hidden)", T_LOGPROBS),
    Mutant("logprobs: all logits kept for backward", LOGPROBS, "if len(kept_targets) <= chunk:", "if True:", T_LOGPROBS),
    Mutant("logprobs: entropy without its sign", LOGPROBS, "return -torch.cat([(block", "return torch.cat([(block", T_LOGPROBS),
    # rewards
    Mutant("rewards: KL is paid instead of charged", PPO, "rewards = -kl_coef", "rewards = kl_coef", T_PPO),
    Mutant("rewards: score one slot early", PPO, ".argmax(1, keepdim=True)", ".argmax(1, keepdim=True).sub(1).clamp(min=0)", T_PPO),
    Mutant("rewards: score one slot late", PPO, ".argmax(1, keepdim=True)", ".argmax(1, keepdim=True).add(1).clamp(max=response_mask.shape[1] - 1)", T_PPO),
    Mutant("rewards: score at the end of the padded row", PPO, "(places * response_mask)", "places[None].expand_as(response_mask)", T_PPO),
    Mutant("missing EOS: polarity", PPO, "torch.where(has_eos, scores,", "torch.where(~has_eos, scores,", T_PPO),
    Mutant("missing EOS: bonus", PPO, "-penalty if mode", "penalty if mode", T_PPO),
    # advantages
    Mutant("gae: lambda forgotten", PPO, "gamma * gae_lambda * next_advantage", "gamma * next_advantage", T_PPO),
    Mutant("gae: gamma forgotten in delta", PPO, "rewards[:, t] + gamma * next_value", "rewards[:, t] + next_value", T_PPO),
    Mutant("gae: value leaks from padding", PPO, "rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)", "rewards = torch.where(mask, rewards, 0.0)", T_PPO),
    Mutant("gae: bootstrap with the current value", PPO, "next_value = values[:, t]", "next_value = values[:, t] * 0", T_PPO),
    Mutant("gae: returns without the value", PPO, "return advantages, advantages + values", "return advantages, advantages", T_PPO),
    # losses
    Mutant("surrogate: sign", PPO, "torch.maximum(-advantages * ratio, -advantages", "torch.maximum(advantages * ratio, advantages", T_PPO),
    Mutant("surrogate: optimistic bound", PPO, "torch.maximum(-advantages", "torch.minimum(-advantages", T_PPO),
    Mutant("surrogate: ratio upside down", PPO, "logprobs - old_logprobs, 0.0", "old_logprobs - logprobs, 0.0", T_PPO),
    Mutant("surrogate: overflow", PPO, ".clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)", "", T_PPO),
    Mutant("surrogate: approximate KL with the wrong sign", PPO, "torch.expm1(log_ratio) - log_ratio", "torch.expm1(log_ratio) + log_ratio", T_PPO),
    Mutant("value: optimistic clip", PPO, "torch.maximum(plain", "torch.minimum(plain", T_PPO),
    Mutant("value: half forgotten", PPO, "loss = 0.5 * (worst", "loss = (worst", T_PPO),
    # KL
    Mutant("kl: reversed", KL, "logprobs - ref_logprobs, 0.0", "ref_logprobs - logprobs, 0.0", T_KL),
    Mutant("kl: prompt and padding count", KL, "torch.where(response_mask, logprobs - ref_logprobs, 0.0)", "logprobs - ref_logprobs", T_KL),
    Mutant("kl: k3 of the other direction", KL, "torch.expm1(-x) + x", "torch.expm1(x) - x", T_KL),
    Mutant("kl: controller pushes the wrong way", KL, "kl / self.target - 1", "1 - kl / self.target", T_KL),
    Mutant("kl: controller without its clip", KL, "min(max(kl / self.target - 1, -0.2), 0.2)", "kl / self.target - 1", T_KL),
    Mutant("best of n: weights off by one", KL, "weights[k] * (k + 1 - n) / k", "weights[k] * (k - n) / k", T_KL),
    Mutant("best of n: KL without its correction", KL, "math.log(n) - (n - 1) / n", "math.log(n)", T_KL),
    # preferences
    Mutant("ranking: flipped", RANK, "gap = chosen - rejected", "gap = rejected - chosen", T_RANK),
    Mutant("ranking: missing 1 / C(K, 2)", RANK, "loss = (weights * losses).sum()", "loss = losses.sum()", T_RANK),
    Mutant("ranking: margin with the wrong sign", RANK, "gap - margins", "gap + margins", T_RANK),
    Mutant("ranking: centring pulls the gap", RANK, "(chosen + rejected) ** 2", "(chosen - rejected) ** 2", T_RANK),
    Mutant("best of k: one softmax over the batch", RANK, "count = int(rankings.max()) + 1 if len(rankings) else 0", "rankings = rankings * 0; count = 1 if len(rankings) else 0", T_RANK),
    # the zero and the unit of a reward model
    Mutant("centring: the offset does not know the gain", CENTER, "-float(scores.mean()) * gain", "-float(scores.mean())", T_RM),
    Mutant("centring: unbiased variance", CENTER, "float(scores.std())", "float(scores.std(ddof=1))", T_RM),
    Mutant("centring: the saved weights keep their scale", CENTER, "in (model.score.weight, master) if w is not None", "in (model.score.weight,)", T_RM),
    Mutant("centring: an offset that stood before counts", CENTER, "    model.score_offset = 0.0\n", "", T_RM),
    # pretraining text in fine-tuning
    Mutant("mix: demonstrations keep their whole weight", SFT, "share = 1 - config.mix_fraction if mix else 1.0", "share = 1.0", T_SFT),
    Mutant("mix: the same windows in every step", SFT, "mine = [index * count + i for", "mine = [i for", T_SFT),
    Mutant("mix: fraction of the demonstrations", SFT, "config.batch_size * config.mix_fraction / (1 - config.mix_fraction)", "config.batch_size * config.mix_fraction", T_SFT),
    Mutant("epochs: the one before the end is called like it", SFT, "epoch = -(-done // len(examples))", "epoch = (done // len(examples))", T_SFT),
    # sampling
    Mutant("draw: temperature multiplies", DRAW, "logits / sampling.temperature", "logits * sampling.temperature", T_DRAW),
    Mutant("draw: top_p drops the boundary token", DRAW, "before = ranked.cumsum(-1, dtype=torch.float64) - ranked", "before = ranked.cumsum(-1, dtype=torch.float64)", T_DRAW),
    Mutant("draw: top_p of a mass that top_k cut", DRAW, "sampling.top_p * ranked.sum(-1, keepdim=True)", "sampling.top_p", T_DRAW),
    Mutant("draw: impossible tokens at u = 0", DRAW, "last * BELOW_ONE), right=True)", "last * BELOW_ONE), right=False)", T_DRAW),
    Mutant("draw: arithmetic shift", DRAW, "(x >> bits) & ((1 << (64 - bits)) - 1)", "x >> bits", T_DRAW),
    Mutant("generate: every token of a row gets the same number", GENERATE, "steps = [len(row.out.ids) for row in group.rows]", "steps = [0 for row in group.rows]", T_GENERATE),
    Mutant("generate: goes on after the end", GENERATE, "if out.ids[-1] in job.sampling.eos_ids or", "if", T_GENERATE),
    Mutant("generate: writes to ended rows", GENERATE, "        if out.finish_reason:\n            continue\n", "", T_GENERATE),
    Mutant("generate: reads the state of a padded position", GENERATE, "lengths - 1]", "width - 1]", T_GENERATE),
    Mutant("generate: rows change places", GENERATE, "for place, row in enumerate(group.rows) if not", "for place, row in enumerate(reversed(group.rows)) if not", T_GENERATE),
    # from episodes and comparisons to tensors
    Mutant("iteration: prompt tokens count", ROLLOUT, "[False] * len(e.prompt_ids) + [True]", "[True] * len(e.prompt_ids) + [True]", T_STEP),
    Mutant("iteration: the end token does not count", ROLLOUT, "[True] * len(e.response_ids)", "[True] * (len(e.response_ids) - 1) + [False]", T_STEP),
    Mutant("iteration: reference at temperature 1", ROLLOUT, "read_logprobs(ref_policy, hidden, piece, temperature)", "read_logprobs(ref_policy, hidden, piece, 1.0)", T_STEP),
    Mutant("iteration: whitened rewards lose their mean", STEP, "shift_mean=False", "shift_mean=True", T_STEP),
    Mutant("iteration: penalty before the clip", STEP, "    if how.reward_clip is not None:", "    if how.reward_clip is not None and how.missing_eos_penalty is None:", T_STEP),
    Mutant("iteration: weight in episodes", STEP, "weight = float(sum(len(e.response_ids) for group", "weight = float(sum(1 for group", T_STEP),
    # a value head on the policy's trunk
    Mutant("shared: value loss without its weight", STEP, "loss + how.value_coef * error", "loss + error", T_SHARED),
    Mutant("shared: value loss forgotten", STEP, "loss + how.value_coef * error", "loss", T_SHARED),
    Mutant("shared: values do not reach the trunk", STEP, "value_error(piece, hidden)\n        return", "value_error(piece, hidden.detach())\n        return", T_SHARED),
    Mutant("shared: values read from the reference", ROLLOUT, "        if value_model.backbone is not policy:\n            hidden = states(value_model.backbone, piece)", "        hidden = states(ref_policy if value_model.backbone is policy else value_model.backbone, piece)", T_SHARED),
    Mutant("shared: clipped apart", "engine/loop.py", "    if clip_together:", "    if False:", T_SHARED),
    Mutant("shared: the step clips apart", ITERATION, "clip_together=self.actors.shared", "clip_together=False", T_SHARED),
    Mutant("shared: another head is saved", ITERATION, "head = self.head_average.weights if self.head_average else", "head =", T_SHARED),
    Mutant("shared: the last trunk is saved with it", ITERATION, "in self.final_weights().items()", "in self.policy_optimizer.masters.items()", T_SHARED),
    Mutant("shared: the head's average does not move", ITERATION, "(self.average, self.head_average)", "(self.average,)", T_SHARED),
    Mutant("shared: the head's average is not resumed", ITERATION, "        if self.head_average:\n            self.head_average.load", "        if False:\n            self.head_average.load", T_SHARED),
    Mutant("shared: the head starts at random", "engine/actors.py", "nn.init.zeros_(value_model.score.weight)\n        return value_model.eval()", "nn.init.normal_(value_model.score.weight)\n        return value_model.eval()", T_SHARED),
    Mutant("loss mean: long answers weigh more", STEP, "per_response / size", "size / per_response", T_STEP),
    Mutant("loss mean: the value loss is not weighted", PPO, "0.5 * (worst if weights is None else worst * weights).sum()", "0.5 * worst.sum()", T_STEP),
    Mutant("loss mean: the surrogate is not weighted", PPO, "losses if weights is None else losses * weights", "losses", T_STEP),
    Mutant("loss mean: each process for itself", STEP, "total = dist.sum_dict(mine)", "total = mine", T_STEP),
    Mutant("kl: the charge ignores the estimator", STEP, "mask, kl_coef, kl_estimator)[0]", "mask, kl_coef)[0]", T_STEP),
    Mutant("value head: keeps the shift of a centred model", "engine/actors.py", "        value_model.score_offset = 0.0\n", "", T_COMMAND),
    Mutant("iteration: minibatches with replacement", STEP, ".permutation(count)", ".integers(0, count, count)", T_STEP),
    Mutant("reward scale: between rollouts the lead of a mean is forgotten", SCALE, "squares + lead**2 * self.count * count / both", "squares", T_SCALE),
    Mutant("reward scale: the first rollout is overwritten", SCALE, "if self.over == \"first\" and self.count:", "if False:", T_SCALE),
    Mutant("reward scale: biased", SCALE, "self.squares / (self.count - 1)", "self.squares / self.count", T_SCALE),
    Mutant("reward scale: each process for itself", SCALE, "squares = dist.sum_dict({\"squares\": math.fsum((s - mean) ** 2 for s in scores)})[\"squares\"]", "squares = math.fsum((s - mean) ** 2 for s in scores)", T_SCALE),
    Mutant("reward scale: clips before it scales", STEP, "    if scale is not None:\n        scores = (scores - scale.shift) / scale.divisor\n", "    if how.reward_clip is not None:\n        scores = scores.clamp(-how.reward_clip, how.reward_clip)\n    if scale is not None:\n        scores = (scores - scale.shift) / scale.divisor\n", T_SCALE),
    Mutant("reward scale: shifted without being asked", SCALE, "return self.mean if self.shifted else 0.0", "return self.mean", T_SCALE),
    Mutant("reward: the shortest answer that pays is one longer", STEP, "len(e.response_ids) >= how.min_tokens", "len(e.response_ids) > how.min_tokens", T_SCALE),
    Mutant("stop: waits for the program", "scorers/command.py", "                leave_if_asked()\n", "", T_COMMAND),
    Mutant("stop: the step that was left counts as done", "engine/loop.py", "run.stop_if_asked(index, full_snapshot)", "run.stop_if_asked(index + 1, full_snapshot)", T_COMMAND),
    Mutant("resume: the running moments start anew", "engine/iteration.py", "**self.run.state[\"reward_scale\"]", "**{}", T_COMMAND),
    Mutant("ptx: not in the step", "engine/iteration.py", "objectives.append(self._ptx_objective(self.ptx))", "self._ptx_objective(self.ptx)", T_TRAINING),
    Mutant("ptx: without its coefficient", "engine/iteration.py", "\"ptx\", config.ptx_coef)", "\"ptx\", 1.0)", T_TRAINING),
    Mutant("batch: masks one token late", "data/batching.py", "torch.from_numpy(ids).to(device),\n        torch.from_numpy(real).to(device),\n        torch.from_numpy(counts[:, 1:]", "torch.from_numpy(ids).to(device),\n        torch.from_numpy(real).to(device),\n        torch.from_numpy(counts[:, :-1]", "engine/test_alignment.py"),
    Mutant("generate: shapes depend on neighbours", GENERATE, "KEY_WIDTH = 64", "KEY_WIDTH = 1", T_GENERATE),
]  # fmt: skip


def survives(mutant: Mutant) -> bool:
    """Do the tests pass although the package is broken?"""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(TOP / "rlhfkit", copy / "rlhfkit", ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / "rlhfkit" / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise SystemExit(f"{mutant.what}: found {text.count(mutant.old)} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        for part in ("conftest.py", *mutant.tests.split()):
            (copy / "tests" / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / "tests" / part, copy / "tests" / part)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "tests"],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise SystemExit(f"{mutant.what}: pytest could not run\n{done.stdout}{done.stderr}")
        return done.returncode == 0


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.what for word in words)]
    alive = []
    for mutant in chosen:
        if survives(mutant):
            alive.append(mutant)
        print(f"{'SURVIVED' if mutant in alive else 'caught  '} {mutant.what}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants caught")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
