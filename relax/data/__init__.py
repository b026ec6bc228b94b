"""From user data to tokenized rows with a loss mask, and on to batches. Importing it loads no data library."""

from relax.data.chat import TrainOn
from relax.data.encoding import EncodingOptions, tokenize_row
from relax.data.formats import FORMATS, Format, Row, recognise
from relax.data.rows import Rows, RowSubset
from relax.data.sources import load_rows, split_rows
from relax.data.tokenization import tokenize_rows
from relax.data.tokenized import Sample, TokenizationReport, TokenizedDataset

__all__ = [
    "FORMATS",
    "EncodingOptions",
    "Format",
    "Row",
    "RowSubset",
    "Rows",
    "Sample",
    "TokenizationReport",
    "TokenizedDataset",
    "TrainOn",
    "load_rows",
    "recognise",
    "split_rows",
    "tokenize_row",
    "tokenize_rows",
]
