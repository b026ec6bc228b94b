"""Trainers: what one update means. Each is a LightningModule."""

from trainers.grpo_trainer import GRPOTrainer
from trainers.on_policy import OnPolicyTrainer
from trainers.reward_trainer import RewardTrainer
from trainers.rl_trainer import RLTrainer
from trainers.sft_trainer import SFTTrainer
from trainers.trainer import Trainer

__all__ = ["GRPOTrainer", "OnPolicyTrainer", "RLTrainer", "RewardTrainer", "SFTTrainer", "Trainer"]
