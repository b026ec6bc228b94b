"""The built-in engine: completions by the policy's own modules, whatever weights they have at the moment.

It holds no weights, no second model and no state between calls. One step is three calls: the scheduler decides who
joins, the sampler and the rows take a token each, the runner computes the next logits.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from relax.causal_lm import base_model
from relax.errors import UserError
from relax.modes import evaluating
from relax.rollout import graphs
from relax.rollout.attention_choice import kept_attention
from relax.rollout.memory import budget_tokens, plan_slots
from relax.rollout.noise import stream_keys
from relax.rollout.probe import cacheable_tokens, find_ability
from relax.rollout.protocol import Rollouts
from relax.rollout.rows import LiveRows, Row
from relax.rollout.runners import PromptRunner, RecomputeRunner, Runner, SlotRunner
from relax.rollout.sampler import Sampler
from relax.rollout.sampling import Sampling
from relax.rollout.scheduler import Scheduler, group_rows

PIECE_TOKENS = 8192
"""Prompt tokens that go through the model at one time."""
SLOW_ROWS = 64
"""Rows of one prompt that are decoded at one time where there are no slots."""


class PolicyEngine:
    """A ``RolloutEngine`` over a Hugging Face causal language model, with or without LoRA adapters.

    Each distinct prompt is read once for all of its completions; memory for keys and values is taken once a call;
    finished completions leave and waiting ones take their places. Building one tries the model: what cannot be decoded
    in this way is decoded more slowly, with a warning that says why.

    Args:
        model: the policy. Its modules are put into evaluation mode while it generates, then back.
        memory: for keys and values, in tokens or as a size; see ``budget_tokens``. It decides how many completions are
            decoded at one time, never what they are.
        steps_between_checks: tokens that every row gets before finished ones are looked for. Looking is free on the
            CPU; on a GPU it waits for all kernels. None: 1 on the CPU, else 8.

    Raises:
        UserError: ``model`` is no causal language model, has an adapter that is no part of its layers, or is on a
            device without float64.
    """

    def __init__(
        self, model: nn.Module, *, memory: int | str | None = None, steps_between_checks: int | None = None
    ) -> None:
        self._policy, self._model, self._memory = model, base_model(model), memory
        _refuse_prompt_learning(model)
        _refuse_device(self._model.device)
        self._check_every = steps_between_checks or (1 if self._model.device.type == "cpu" else 8)
        with self._generating():
            self._ability = find_ability(self._model)
        if self._ability.reason:
            self._warn(f"{self._ability.reason}; ReLax decodes it one prompt at a time")
        if self._ability.unrecorded:
            self._warn(f"{self._ability.unrecorded}; ReLax decodes it without CUDA graphs")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        sampling: Sampling,
        seed: int,
        prompt_ids: Sequence[int] | None = None,
        step: int = 0,
    ) -> Rollouts:
        """See ``RolloutEngine``.

        Raises:
            UserError: a prompt is empty, a token is not in the vocabulary, a sequence gets longer than the model
                allows, or than ``memory``.
        """
        self._check(prompts, num_samples, sampling)
        names = range(len(prompts)) if prompt_ids is None else prompt_ids
        pairs = [(prompt, name, i) for prompt, name in zip(prompts, names, strict=True) for i in range(num_samples)]
        keys = stream_keys(seed, step, ((name, sample) for _, name, sample in pairs))
        rows = [Row(prompt, key) for (prompt, _, _), key in zip(pairs, keys, strict=True)]
        with self._generating():
            runner, capacity = self._make_runner(rows, sampling)
            self._decode(runner, Scheduler(group_rows(rows), capacity, runner.mixes_prompts), sampling)
        return _rollouts(rows, num_samples, torch.promote_types(self._model.dtype, torch.float32))

    def check_longest(self, prompt_tokens: int, sampling: Sampling) -> None:
        """For the start of a run: refuse at once what ``generate`` would when it comes to the longest prompt.

        Raises:
            UserError: it gets longer than the model allows, or than ``memory``.
        """
        self._check_length(prompt_tokens, sampling.max_new_tokens)
        if self._ability.make_slow_runner is None:
            plan_slots(self._budget_tokens(), 1, prompt_tokens, sampling.max_new_tokens)

    def _budget_tokens(self) -> int:
        return budget_tokens(self._memory, self._ability.token_bytes, self._model.device)

    @contextmanager
    def _generating(self) -> Iterator[None]:
        """Leave no trace in the model: neither its modes nor its attention change, and it can be trained as before."""
        # Inference mode saves a tenth of a small model's step. Rotary frequencies that follow the length are kept by
        # the model, and what inference mode made cannot be trained with.
        follows_length = cacheable_tokens(self._model) is not None
        no_gradients = torch.no_grad() if follows_length else torch.inference_mode()
        with evaluating(self._policy), kept_attention(self._model), no_gradients:
            yield

    def _make_runner(self, rows: list[Row], sampling: Sampling) -> tuple[Runner, int]:
        """Who computes, and how many rows at one time."""
        longest = max(len(row.prompt) for row in rows)
        limit = cacheable_tokens(self._model)
        if limit is not None and longest + sampling.max_new_tokens > limit:
            self._warn(
                f"has other rotary frequencies in sequences of more than {limit} tokens, so ReLax reads them anew for "
                "every token; shorten prompts or --max_new_tokens"
            )
            return RecomputeRunner(self._model), SLOW_ROWS
        if self._ability.make_slow_runner is not None:
            return self._ability.make_slow_runner(self._model), SLOW_ROWS
        num_rows, num_columns = plan_slots(self._budget_tokens(), len(rows), longest, sampling.max_new_tokens)
        if sampling.max_new_tokens == 1:
            return PromptRunner(self._model, piece_tokens=PIECE_TOKENS), num_rows
        runner = SlotRunner(
            self._model,
            num_rows=num_rows,
            num_columns=num_columns,
            longest_prompt=longest,
            piece_tokens=PIECE_TOKENS,
            record=None if self._ability.unrecorded else graphs.recorder(self._model.device),
        )
        return runner, num_rows

    def _decode(self, runner: Runner, scheduler: Scheduler, sampling: Sampling) -> None:
        """Write every row to its end."""
        live = LiveRows(sampling, self._vocabulary, self._model.device)
        sampler = Sampler(sampling, self._model.device)
        logits: Tensor | None = None
        while scheduler or live:
            if not live.pending and (groups := scheduler.admit(len(live))):
                first = runner.admit(groups)
                logits = first if logits is None else torch.cat([logits, first])
                live.add([row for group in groups for row in group.rows])
            assert logits is not None
            tokens, logprobs = sampler(logits, live)
            live.append(tokens, logprobs)
            if len(live.pending) == self._check_every or not live.steps_left:
                places = live.collect()
                if len(places) < len(tokens):
                    runner.keep(places)
                    tokens = tokens[torch.tensor(places, dtype=torch.int64, device=tokens.device)]
            logits = runner.decode(tokens, live.positions) if live else None

    @property
    def _vocabulary(self) -> int:
        size: int = self._model.get_output_embeddings().weight.shape[0]
        return size

    def _check(self, prompts: Sequence[Sequence[int]], num_samples: int, sampling: Sampling) -> None:
        if not prompts or num_samples < 1:
            raise UserError(f"prompts and num_samples must be at least 1; got {len(prompts)} and {num_samples}")
        vocabulary = self._vocabulary
        for place, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"prompt {place} is empty; every prompt needs a token, such as the tokenizer's BOS")
            if min(prompt) < 0 or max(prompt) >= vocabulary:
                raise UserError(f"prompt {place} has a token outside the vocabulary of {vocabulary}")
        if max(sampling.stop_ids, default=0) >= vocabulary:
            raise UserError(f"--stop_ids must be below {vocabulary}, the vocabulary; got {sampling.stop_ids}")
        self._check_length(max(map(len, prompts)), sampling.max_new_tokens)

    def _check_length(self, longest_prompt: int, max_new_tokens: int) -> None:
        """Positions that a rotary model has not seen are computed all the same; learned ones do not exist."""
        config = self._model.config.get_text_config()
        settings, name = config.to_dict(), "max_position_embeddings"
        limit, total = settings.get(config.attribute_map.get(name, name)), longest_prompt + max_new_tokens
        if not limit or total <= limit:
            return
        message = (
            f"the longest prompt ({longest_prompt}) and --max_new_tokens ({max_new_tokens}) make {total} tokens; "
            f"{type(self._model).__name__} has {limit} positions"
        )
        if not settings.get("rope_parameters"):
            raise UserError(f"{message}; shorten them")
        warnings.warn(message, stacklevel=4)

    def _warn(self, reason: str) -> None:
        warnings.warn(f"{type(self._model).__name__} {reason}", stacklevel=4)


def _rollouts(rows: list[Row], num_samples: int, dtype: torch.dtype) -> Rollouts:
    reasons = tuple(row.finish_reason for row in rows if row.finish_reason is not None)
    assert len(reasons) == len(rows)
    return Rollouts(
        ids=torch.tensor([token for row in rows for token in row.ids]),
        logprobs=torch.tensor([logprob for row in rows for logprob in row.logprobs], dtype=dtype),
        lengths=torch.tensor([len(row.ids) for row in rows]),
        finish_reasons=reasons,
        num_samples=num_samples,
    )


def _refuse_prompt_learning(model: nn.Module) -> None:
    from peft import PeftModel

    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        kind = model.active_peft_config.peft_type.value
        raise UserError(f"adapters of type {kind} live outside the model's layers and cannot generate here; use LoRA")


def _refuse_device(device: torch.device) -> None:
    """Tokens are drawn by sums in float64; see `relax.rollout.drawing`."""
    if device.type == "mps":
        raise UserError("sampling needs float64, which the device mps lacks; run on the CPU with --accelerator=cpu")
