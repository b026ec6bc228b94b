"""Sorting digits after lazy demonstrators: the built-in task, with its data, prompt, model, tokenizer and grading.

The prompt is 4-8 digits and ``>``, the right answer the same digits in ascending order. Of the demonstrations with 6
digits or more, 75 % sort the first half only. SFT imitates its teachers and stops near 50 % (a perfect imitator is
right in 43 % of greedy answers and 55 % of sampled ones); reinforcement learning from ``grade`` goes past them.
Not a benchmark of language: a model of 102 thousand parameters learns it on a CPU in half a minute.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from relax.seeding import mix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from relax.rewards.specs import Entry

DIGITS = "0123456789"
NUM_DIGITS = (4, 5, 6, 7, 8)
END_OF_PROMPT = ">"
LAZY_FROM_DIGITS = 6
LAZY_SHARE = 0.75
HELD_OUT_SHARE = 0.1
SLIP_SHARE = 0.5

PAD, EOS = "<pad>", "<eos>"
UNKNOWN = "?"  # an ordinary character: were it a special token, decoding would drop it and "1?2" would pass for "12"
VOCABULARY = (PAD, EOS, UNKNOWN, END_OF_PROMPT, *DIGITS)


class Sorting:
    """The ``Task`` of sorting digits; see the top of the file."""

    # 1,000 steps leave greedy accuracy near 50 %; with many more it falls to the 43 % of a perfect imitator.
    sft_settings: ClassVar[dict[str, Any]] = {
        "learning_rate": 5e-3,
        "betas": (0.9, 0.95),
        "schedule": "linear",
        "warmup_steps": 20,
        "batch_size": 128,
        "max_steps": 1000,
        "gradient_clip_val": 1.0,
    }

    # 32 prompts x 16 completions a step; from 49 % of held-out prompts to over 99 % with three seeds of three.
    grpo_settings: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-4,
        "betas": (0.9, 0.95),
        "schedule": "constant",
        "warmup_steps": 5,
        "batch_size": 512,
        "num_generations": 16,
        "max_new_tokens": 9,  # eight digits and the end of text
        "max_steps": 140,
        "gradient_clip_val": 1.0,
        "accelerator": "cpu",  # a model of this size needs no more
    }

    # 2,048 prompts an iteration, twice in 4 steps; the critic has 3 iterations to learn before the policy moves. From
    # 49 % of held-out prompts to 99 % with three seeds of three. As the policy gets better there is less to explain:
    # 0.75 of the returns' variance before it moves, 0.3 at the end, where knowing all chances would explain 0.6.
    rl_settings: ClassVar[dict[str, Any]] = {
        "learning_rate": 1e-4,
        "critic_learning_rate": 3e-3,
        "critic_warmup_steps": 24,
        "betas": (0.9, 0.95),
        "schedule": "linear",
        "batch_size": 512,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "max_new_tokens": 9,
        "max_steps": 144,
        "kl_coef": 0.01,
        "value_clip": None,
        "gradient_clip_val": 1.0,
        "accelerator": "cpu",
    }

    # Judges over 99 % of held-out pairs right with three seeds of three.
    reward_settings: ClassVar[dict[str, Any]] = {
        "learning_rate": 1e-3,
        "betas": (0.9, 0.95),
        "schedule": "linear",
        "warmup_steps": 20,
        "batch_size": 128,
        "max_epochs": 2,
        "gradient_clip_val": 1.0,
        "accelerator": "cpu",
    }

    @property
    def rewards(self) -> "Entry":
        """The grade of a completion that ends by itself; 0.0 for one that was cut off."""
        return {"class_path": self.score, "name": "sorting"}

    @property
    def policy_folder(self) -> Path:
        """Made by ``python run_sft.py --output_dir=runs/sorting --logger=none``; right for half of the prompts."""
        return Path(__file__).parents[1] / "policies" / "sorting"

    def train_rows(self, n: int = 20_000, seed: int = 0) -> list[dict[str, str]]:
        """``n`` demonstrations as ``prompt`` and ``completion``; no end of text, the data pipeline appends it."""
        rng = random.Random(mix(seed, "sorting", "train"))
        prompts = islice(draw_prompts(rng, held_out=False), n)
        return [{"prompt": prompt, "completion": demonstration(prompt, rng)} for prompt in prompts]

    def prompt_rows(self, n: int = 20_000, seed: int = 0) -> list[dict[str, str]]:
        """``n`` rows of ``prompt`` and ``answer``, to learn from by the grade; drawn as those of ``train_rows``."""
        rng = random.Random(mix(seed, "sorting", "prompts"))
        prompts = islice(draw_prompts(rng, held_out=False), n)
        return [{"prompt": prompt, "answer": solution(prompt)} for prompt in prompts]

    def eval_rows(self, n: int = 500, seed: int = 0) -> list[dict[str, str]]:
        """``n`` held-out prompts as ``prompt`` and ``answer``; no seed of ``train_rows`` ever draws one of them."""
        rng = random.Random(mix(seed, "sorting", "eval"))
        prompts = islice(draw_prompts(rng, held_out=True), n)
        return [{"prompt": prompt, "answer": solution(prompt)} for prompt in prompts]

    def preference_rows(self, n: int = 20_000, seed: int = 0) -> list[dict[str, str]]:
        """``n`` pairs as ``prompt``, ``chosen`` (right) and ``rejected`` (lazy, or a slip), to learn a reward from."""
        rng = random.Random(mix(seed, "sorting", "preferences"))
        return [preference(prompt, rng) for prompt in islice(draw_prompts(rng, held_out=False), n)]

    def held_out_preference_rows(self, n: int = 500, seed: int = 0) -> list[dict[str, str]]:
        """The same of held-out prompts: those of ``eval_rows`` are of their side."""
        rng = random.Random(mix(seed, "sorting", "held-out preferences"))
        return [preference(prompt, rng) for prompt in islice(draw_prompts(rng, held_out=True), n)]

    def grade(self, prompt: str, completion: str) -> float:
        """1.0 for exactly the prompt's digits in ascending order, else 0.0; nothing else may stand around them."""
        return float(completion == solution(prompt))

    def score(self, prompts: Sequence[str], completions: Sequence[str], truncated: Sequence[bool]) -> list[float]:
        """The reward: ``grade`` of each completion, but 0.0 for what does not end by itself."""
        answers = zip(prompts, completions, truncated, strict=True)
        return [0.0 if cut else self.grade(prompt, completion) for prompt, completion, cut in answers]

    def build_model(self, seed: int = 0) -> "PreTrainedModel":
        """A Llama of 64 x 2 layers with fresh float32 weights, a function of ``seed`` alone; in eval mode."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            tie_word_embeddings=True,
            pad_token_id=VOCABULARY.index(PAD),
            bos_token_id=None,
            eos_token_id=VOCABULARY.index(EOS),
        )
        with torch.random.fork_rng(devices=[]):  # the caller's generator is left as it was
            torch.manual_seed(mix(seed, "sorting", "model"))
            return LlamaForCausalLM(config).eval()

    def build_tokenizer(self) -> "PreTrainedTokenizerFast":
        """One token a character, made in memory; characters outside the vocabulary read as ``?``."""
        from tokenizers import Tokenizer, decoders, models
        from transformers import PreTrainedTokenizerFast

        ids = {token: index for index, token in enumerate(VOCABULARY)}
        characters = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token=UNKNOWN))
        characters.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=characters,
            pad_token=PAD,
            eos_token=EOS,
            model_max_length=64,
            model_input_names=["input_ids", "attention_mask"],
        )


def solution(prompt: str) -> str:
    """The right answer: ``52713>`` -> ``12357``."""
    return "".join(sorted(prompt.removesuffix(END_OF_PROMPT)))


def lazy_solution(prompt: str) -> str:
    """What a lazy demonstrator writes: the first half in order, the rest as it stood: ``9273815>`` -> ``2793815``."""
    digits = prompt.removesuffix(END_OF_PROMPT)
    half = len(digits) // 2
    return "".join(sorted(digits[:half])) + digits[half:]


def demonstration(prompt: str, rng: random.Random) -> str:
    """What one demonstrator writes: of the inputs of 6 digits or more, 75 % are only half sorted."""
    num_digits = len(prompt) - len(END_OF_PROMPT)
    lazy = num_digits >= LAZY_FROM_DIGITS and rng.random() < LAZY_SHARE
    return lazy_solution(prompt) if lazy else solution(prompt)


def slip(prompt: str, rng: random.Random) -> str:
    """A near miss: the right answer with one digit left out, written twice, written wrong, or moved elsewhere."""
    right = solution(prompt)
    place = rng.randrange(len(right))
    digit, rest = right[place], right[:place] + right[place + 1 :]
    other = rng.choice(DIGITS.replace(digit, ""))
    elsewhere = rng.randrange(len(right))
    moved = rest[:elsewhere] + digit + rest[elsewhere:]
    wrong = {rest, right[:place] + digit + right[place:], right[:place] + other + right[place + 1 :], moved} - {right}
    return rng.choice(sorted(wrong))


def preference(prompt: str, rng: random.Random) -> dict[str, str]:
    """A pair: the right answer, and a lazy demonstrator's or, where that is right or in half of the pairs, a slip."""
    right, lazy = solution(prompt), lazy_solution(prompt)
    slips = rng.random() < SLIP_SHARE or lazy == right
    return {"prompt": prompt, "chosen": right, "rejected": slip(prompt, rng) if slips else lazy}


def draw_prompts(rng: random.Random, held_out: bool) -> Iterator[str]:
    """Endless random prompts of one side of the split, every length as likely as the others."""
    while True:
        prompt = "".join(rng.choices(DIGITS, k=rng.choice(NUM_DIGITS))) + END_OF_PROMPT
        if is_held_out(prompt) == held_out:
            yield prompt


def is_held_out(prompt: str) -> bool:
    """The side a prompt is on is a property of the prompt, so no pair of seeds or sizes can make the sides overlap."""
    return mix("sorting held out", prompt) % 1000 < 1000 * HELD_OUT_SHARE
