"""From a user's file to rows of tokens: `sources` reads, `encode` tokenises and packs, `load_data` splits."""

from loraprune.data.encode import Collator, Row, TokenRows, check_vocabulary
from loraprune.data.load import Data, load_data, load_rows

__all__ = ["Collator", "Data", "Row", "TokenRows", "check_vocabulary", "load_data", "load_rows"]
