"""Which token is whose, in padded and in packed micro-batches."""

import torch

from relax.data.batching.batches import collate_packed, collate_padded
from relax.data.tokens.tokenized import Sample
from relax.sequences import sequence_members, sequence_numbers, token_lengths

SAMPLES = [Sample.of([7] * n, [True] * n) for n in (2, 4, 1)]


def test_padded_rows_own_what_is_not_padding() -> None:
    batch = collate_padded(SAMPLES, pad_id=7)  # the id of a real token: padding is known by its place
    assert sequence_numbers(batch).tolist() == [[0, 0, 3, 3], [1, 1, 1, 1], [2, 3, 3, 3]]
    inf = torch.inf
    assert token_lengths(batch).tolist() == [[2, 2, inf, inf], [4, 4, 4, 4], [1, inf, inf, inf]]
    assert sequence_members(batch).sum(-1).tolist() == [2, 4, 1]


def test_packed_documents_own_their_stretch() -> None:
    batch = collate_packed(SAMPLES)
    assert sequence_numbers(batch).tolist() == [[0, 0, 0, 0, 1, 1, 2]]
    assert token_lengths(batch).tolist() == [[4, 4, 4, 4, 2, 2, 1]]
    assert sequence_members(batch).int().tolist() == [[1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0], [0] * 6 + [1]]
