"""Trainers: what one update means. Each is a LightningModule."""

from trainers.sft_trainer import SFTTrainer
from trainers.trainer import Trainer

__all__ = ["SFTTrainer", "Trainer"]
