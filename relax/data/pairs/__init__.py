"""Preference pairs: rows with a better and a worse answer -> token ids, two and two, and their micro-batches."""

from relax.data.pairs.collation import PairBatch, collate_pairs
from relax.data.pairs.dataset import Pair, PairDataset
from relax.data.pairs.encoding import PairOptions, tokenize_pairs

__all__ = ["Pair", "PairBatch", "PairDataset", "PairOptions", "collate_pairs", "tokenize_pairs"]
