"""Turn a user's `--data` into rows of tokens.

`files` reads one file, `examples` picks its columns, `sources` resolves names; `texts`, `chats` (through
`templates`) and `pairs` make tokens, `rows` stores and pads them, and `load` holds out a part for evaluation.
"""

from loraprune.data.files import OWN_NAMES, Columns
from loraprune.data.load import Data, check_apart, load_data, load_rows, read_examples
from loraprune.data.pairs import encode_pairs, find_pairs
from loraprune.data.rows import (
    NO_TARGET,
    Collator,
    PairCollator,
    Row,
    Rows,
    TextRows,
    TokenRows,
    check_vocabulary,
    draw_rows,
    is_never_given,
)
from loraprune.data.sources import columns_of, naming, open_source

__all__ = [
    "NO_TARGET",
    "OWN_NAMES",
    "Collator",
    "Columns",
    "Data",
    "PairCollator",
    "Row",
    "Rows",
    "TextRows",
    "TokenRows",
    "check_apart",
    "check_vocabulary",
    "columns_of",
    "draw_rows",
    "encode_pairs",
    "find_pairs",
    "is_never_given",
    "load_data",
    "load_rows",
    "naming",
    "open_source",
    "read_examples",
]
