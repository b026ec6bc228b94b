"""From user data to tokenized rows with a loss mask, and on to batches. Importing it loads no data library."""

from relax.data.chat.learning import TrainOn
from relax.data.examples import Row
from relax.data.formats.formats import FORMATS, Format, recognise
from relax.data.rows import Rows, RowSubset
from relax.data.sources.loading import load_rows, split_rows
from relax.data.sources.streams import RowStream, open_stream
from relax.data.tokens.encoding import EncodingOptions, tokenize_row
from relax.data.tokens.tokenization import tokenize_rows
from relax.data.tokens.tokenized import Sample, TokenizationReport, TokenizedDataset

__all__ = [
    "FORMATS",
    "EncodingOptions",
    "Format",
    "Row",
    "RowStream",
    "RowSubset",
    "Rows",
    "Sample",
    "TokenizationReport",
    "TokenizedDataset",
    "TrainOn",
    "load_rows",
    "open_stream",
    "recognise",
    "split_rows",
    "tokenize_row",
    "tokenize_rows",
]
