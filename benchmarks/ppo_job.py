"""What every contender of ``benchmarks/ppo.py`` is given: the same fresh models and prompts; and its clock."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from grpo_job import ENDLESS, PROMPT_TOKENS, ROWS, SEED, SIZES, Case
from side_by_side import PeakMemory, Turns, peak_mb
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

__all__ = ["COMPLETIONS", "ENDLESS", "EPOCHS", "LEARNING_RATE", "SEED", "Clock", "PPOCase"]
COMPLETIONS = 64
EPOCHS = 4
LEARNING_RATE = 3e-6
FIRST_CHARACTER = 0x4E00
PHASES = ("rollout", "score", "update")


@dataclass(frozen=True)
class PPOCase(Case):
    """One kind of update: a completion of each of 64 prompts, and four optimizer steps on all of them."""

    kl_coef: float = 0.05
    num_iterations: int = EPOCHS

    @property
    def pad_id(self) -> int:
        """A token that completions do not hold: one that ends them, or where none does, none of the model's."""
        return 0 if self.varying else SIZES[self.size]["vocab_size"]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A token a character: a reward model that reads text reads the very tokens that the policy wrote."""
        from tokenizers import Tokenizer, decoders, models

        size = SIZES[self.size]["vocab_size"]
        words = {chr(FIRST_CHARACTER + number): number for number in range(size)} | {"<eos>": size}
        characters = Tokenizer(models.BPE(vocab=words, merges=[]))
        characters.decoder = decoders.Fuse()
        pad = "<eos>" if self.pad_id == size else chr(FIRST_CHARACTER + self.pad_id)
        return PreTrainedTokenizerFast(
            tokenizer_object=characters,
            pad_token=pad,
            eos_token="<eos>",
            padding_side="left",
            model_max_length=1024,
            model_input_names=["input_ids", "attention_mask"],
        )

    def rows(self) -> list[dict[str, str]]:
        """Prompts of 26 tokens."""
        return [{"prompt": "".join(chr(FIRST_CHARACTER + number) for number in row)} for row in self.prompt_ids()]

    def prompt_ids(self) -> list[list[int]]:
        """The same as token ids."""
        generator = torch.Generator().manual_seed(SEED)
        ids: list[list[int]] = torch.randint(
            1, SIZES[self.size]["vocab_size"], (ROWS, PROMPT_TOKENS), generator=generator
        ).tolist()
        return ids

    def classifier(self, body: LlamaForCausalLM | None = None) -> LlamaForSequenceClassification:
        """A reward model of the policy's size; with ``body`` a value model that starts from it, at 0."""
        source = body or self.model()
        torch.manual_seed(SEED + 1)
        config = type(source.config)(**source.config.to_dict() | {"num_labels": 1})
        model = LlamaForSequenceClassification(config)
        if body is not None:
            model.model.load_state_dict(body.model.state_dict())
            torch.nn.init.zeros_(model.score.weight)
        return model

    def save_reward_model(self, folder: str | Path) -> None:
        """As anyone would load it, with its tokenizer."""
        self.classifier().save_pretrained(folder)
        self.tokenizer().save_pretrained(folder)


class Clock:
    """Says where the seconds of an update went, and lets only as many pass at a time as the parent process asks for."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.lengths, self.memory = turns, [0], PeakMemory()
        self.spent = dict.fromkeys(PHASES, 0.0)
        self.current, self.wall, self.cpu, self.since = PHASES[0], 0.0, 0.0, 0.0

    def begin(self) -> None:
        """Wait for the first turn; call it right before training."""
        self.memory.start()
        self._wait()

    def phase(self, name: str) -> None:
        """From now on CPU seconds count towards ``name``; may be said twice."""
        now = time.process_time()
        self.spent[self.current] += now - self.since
        self.current, self.since = name, now

    def wrote(self, lengths: Sequence[int]) -> None:
        """Completions of so many tokens."""
        self.lengths = [*lengths]

    def update_done(self) -> None:
        """All optimizer steps on a rollout are complete."""
        self.phase(PHASES[0])
        seconds, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        memory = {"peak_mb": peak_mb(), "extra_mb": self.memory.extra_mb()}
        lengths = {"tokens": sum(self.lengths), "longest": max(self.lengths)}
        self.turns.report({"seconds": seconds, "cpu_seconds": cpu} | self.spent | memory | lengths)
        self._wait()

    def _wait(self) -> None:
        self.turns.wait()
        self.spent, self.current = dict.fromkeys(PHASES, 0.0), PHASES[0]
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        self.since = self.cpu
