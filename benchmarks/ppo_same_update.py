"""Does ``RLTrainer`` make the update of the loop written by hand? One iteration of both on the same completions.

ReLax writes them. The loop reads the very tokens, with log-probs of its own policy, which are those of sampling but for
rounding; then come four optimizer steps. Neither knows anything of the other's code.
"""

import tempfile
import warnings
from typing import Any

import torch
from ppo_by_hand import PPO, Rollout, padded_left
from ppo_contenders import by_hand, relax_settings
from ppo_job import SEED, PPOCase
from torch import Tensor, nn


def differences(case: PPOCase) -> dict[str, float]:
    """|ours - theirs| / |theirs| of what is computed on the way, and of how far the weights went."""
    before = flat(case.model())
    ours, policy, critic = relax_iteration(case)
    ppo = by_hand(case)
    rollout = as_rollout(ours, ppo)
    theirs = ppo.score(rollout)
    old = flat(ppo.critic)
    ppo.update(theirs)
    kept = theirs.kept
    found = {
        "log-probs": (ours.tokens["logprobs"], rollout.logprobs[kept]),
        "values": (ours.tokens["values"] + 1, theirs.values[kept] + 1),  # they are 0 at first
        "advantages": (ours.tokens["advantages"], theirs.advantages[kept]),
        "returns": (ours.tokens["returns"], theirs.returns[kept]),
        "step of the policy": (policy - before, flat(ppo.policy) - before),
        "step of the critic": (critic - old, flat(ppo.critic) - old),
    }
    return {name: float((a - b).norm() / b.norm()) for name, (a, b) in found.items()}


def relax_iteration(case: PPOCase) -> tuple[Any, Tensor, Tensor]:
    """The experience of one iteration, and the weights of policy and critic after it."""
    from relax.rewards.reward_model import RewardModel
    from trainers import RLTrainer

    class Kept(RLTrainer):
        def collect(self, prompts: Any) -> Any:
            self.collected = super().collect(prompts)
            return self.collected

    warnings.simplefilter("ignore")
    model = case.model()
    with tempfile.TemporaryDirectory() as folder:
        case.save_reward_model(folder)
        trainer = Kept(
            model,
            case.tokenizer(),
            train_dataset=case.rows(),
            rewards=[RewardModel(folder)],
            critic="separate",
            stop_token_ids=case.stop_ids,
            seed=SEED,
            max_steps=case.num_iterations,
            accelerator="cpu",
            enable_progress_bar=False,
            **relax_settings(case),
        )
        trainer.train()
    return trainer.collected, flat(model), flat(trainer.critic)


@torch.no_grad()
def as_rollout(experience: Any, ppo: PPO) -> Rollout:
    """The same completions, padded."""
    lengths, longest = experience.lengths, int(experience.lengths.max())
    kept = torch.arange(longest) < lengths[:, None]
    completions = torch.full(kept.shape, ppo.settings.pad_id)
    completions[kept] = experience.ids
    ids, mask = padded_left(experience.prompts, ppo.settings.pad_id)
    rollout = Rollout.of(ids, mask, completions, kept, torch.zeros(kept.shape))
    rollout.logprobs = ppo.logprobs(ppo.policy, rollout)
    return rollout


def flat(module: nn.Module) -> Tensor:
    """All weights, one behind the other, in double precision."""
    weights = sorted(module.named_parameters())  # names agree, order does not
    return torch.cat([weight.detach().double().flatten() for _, weight in weights])
