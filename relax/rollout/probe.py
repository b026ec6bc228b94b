"""Which way of decoding a model gets right, found out by trying each against full forwards of the same rows.

The rows are shorter than most windows, which is no gap: a window is a slice of columns, and the tests have shorter
ones. What shows in long rows alone is known by name instead: kinds of layers, rotary frequencies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from relax.isolation import alike
from relax.rollout import graphs
from relax.rollout.attention_choice import kept_attention
from relax.rollout.prompts import read_prompts
from relax.rollout.rows import Row
from relax.rollout.runners import EqualLengthRunner, RecomputeRunner, Runner, SlotRunner
from relax.rollout.scheduler import Group

_STEPS = 5
_FAULTS = (TypeError, ValueError, LookupError, RuntimeError, AttributeError)
"""What models raise that cannot decode in a given way."""


@dataclass(frozen=True)
class Ability:
    """How a model can be decoded."""

    make_slow_runner: Callable[[PreTrainedModel], Runner] | None
    """None: in slots."""
    reason: str
    """Why not in slots, the end of a sentence that begins with the model's name; empty if it can."""
    token_bytes: int
    """Memory of one token in a slot; 0 if there are none."""
    unrecorded: str = ""
    """Why steps in slots are not recorded, where the device could (``relax.rollout.graphs``); empty if they are."""


def find_ability(model: PreTrainedModel) -> Ability:
    """The fastest way in which ``model``, which must be in evaluation mode, gives the logits of a full forward."""
    reason = _known_obstacle(model) or _fault(model, _small_slots)
    if not reason:
        layers = read_prompts(model, [[0]], 1)[0].layers
        token_bytes = sum(x[0, :, 0].nbytes for layer in layers for x in (layer.keys, layer.values))
        record = graphs.recorder(model.device)
        unrecorded = "" if record is None else _fault(model, partial(_small_slots, record=record))
        return Ability(None, "", token_bytes, unrecorded)
    return Ability(RecomputeRunner if _fault(model, EqualLengthRunner) else EqualLengthRunner, reason, 0)


def cacheable_tokens(model: PreTrainedModel) -> int | None:
    """Longest sequence that a cache is good for; None: no limit.

    Rotary frequencies of type ``dynamic`` and ``longrope`` change with the length of the sequence: keys that were
    rotated before are then wrong, and with them those of every row beside.
    """
    config = model.config.get_text_config().to_dict()
    rope = config.get("rope_parameters") or {}
    kinds = [rope] if "rope_type" in rope else [*rope.values()]  # one for all layers, or one for each type of them
    limits = [
        kind.get("original_max_position_embeddings") or config["max_position_embeddings"]
        for kind in kinds
        if kind["rope_type"] in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def _known_obstacle(model: PreTrainedModel) -> str:
    if model._is_stateful:
        return "keeps a recurrent state"
    if not model._can_set_attn_implementation():
        return "has an attention of its own, which cannot be exchanged"
    kinds = set(model.config.get_text_config().to_dict().get("layer_types") or ())
    if unknown := sorted(kinds - {"full_attention", "sliding_attention"}):
        return f"has layers of type {unknown[0]}"
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if unknown := sorted(layer.__name__ for layer in layers - {DynamicLayer, DynamicSlidingWindowLayer}):
        return f"keeps a {unknown[0]} in its cache"
    return ""


def _small_slots(model: PreTrainedModel, record: graphs.Record | None = None) -> SlotRunner:
    """So small that prompts are read in pieces and columns run out, in a probe of ``_STEPS``."""
    return SlotRunner(model, num_rows=4, num_columns=11, longest_prompt=7, piece_tokens=12, record=record)


def _fault(model: PreTrainedModel, make_runner: Callable[[PreTrainedModel], Runner]) -> str:
    try:
        with kept_attention(model):
            decoded = _decode(make_runner(model), model)
        right = all(alike(logits, _read_alone(model, ids)) for ids, logits in decoded)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except _FAULTS as error:
        return f"fails there ({(str(error) or type(error).__name__).splitlines()[0]})"
    return "" if right else "gives other logits there than in a full forward"


def _decode(runner: Runner, model: PreTrainedModel) -> list[tuple[list[list[int]], Tensor]]:
    """Rows that join at different times, and leave: their ids at every step and the logits [n, V] after them."""
    vocabulary = model.get_input_embeddings().num_embeddings
    groups = [_group(7, 1, vocabulary), _group(4, 2, vocabulary), _group(5, 1, vocabulary)]
    joining = {0: groups[:2], 2: groups[2:]} if runner.mixes_prompts else {0: groups[1:2]}
    decoded = []
    live: list[list[int]] = []
    for step in range(_STEPS):
        if new := joining.get(step):
            rows = [[*group.prompt] for group in new for _ in group.rows]
            decoded.append((rows, runner.admit(new)))
            live = live + rows
        if step == 1 and runner.mixes_prompts:  # the first leaves, the last takes its place
            runner.keep([2, 1])
            live = [live[2], live[1]]
        live = [[*ids, (ids[-1] * 5 + place + 3) % vocabulary] for place, ids in enumerate(live)]
        tokens, positions = [ids[-1] for ids in live], [len(ids) - 1 for ids in live]
        logits = runner.decode(*(torch.tensor(x, device=model.device) for x in (tokens, positions)))
        decoded.append((live, logits.clone()))  # the next recorded step writes to the same place
    return decoded


def _group(length: int, copies: int, vocabulary: int) -> Group:
    prompt = [(7 * place + length) % vocabulary for place in range(length)]
    return Group(prompt, [Row(prompt, key=0) for _ in range(copies)])


def _read_alone(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """Logits [n, V] after each of n rows, read by itself from its beginning."""
    inputs = (torch.tensor([ids], device=model.device) for ids in rows)
    return torch.stack([model(input_ids=ids, use_cache=False).logits[0, -1] for ids in inputs])
