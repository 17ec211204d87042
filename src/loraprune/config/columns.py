"""The option that maps a data set's column names to ours.

Knows nothing about torch, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.config.base import Options
from loraprune.errors import ConfigError, nearest

ROLES = (
    "text", "text_pair", "label", "prompt", "response", "instruction", "input", "messages", "system", "history", "tools", "source",
    "target", "image",
)  # fmt: skip
"""roles of columns; a column with the name of its role needs no option"""


@dataclass(frozen=True, kw_only=True)
class ColumnOptions(Options):
    """The names of the columns of --data and --eval."""

    columns: str | None = None
    """your names of columns, as pairs ROLE=COLUMN separated by commas, such as prompt=question,response=answer or text=body,label=y;
    other columns are then not read"""

    def roles(self) -> dict[str, str]:
        """Return role -> column; empty where columns have our names."""
        return parse_columns(self.columns) if self.columns is not None else {}

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        try:
            self.roles()
        except ConfigError as error:
            return [*super().problems(), str(error)]
        return super().problems()


def parse_columns(text: str) -> dict[str, str]:
    """Read ROLE=COLUMN,ROLE=COLUMN.

    Raises:
        ConfigError: if the text has another form, or a role is unknown or given twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        role, _, column = (word.strip() for word in part.partition("="))
        if not role or not column:
            raise ConfigError(f"--columns {text}: {part!r} is not ROLE=COLUMN, such as text=body")
        if role not in ROLES:
            raise ConfigError(
                f"--columns {text}: unknown role {role!r}{nearest(role, ROLES)}: known are {', '.join(ROLES)}"
            )
        if role in found:
            raise ConfigError(f"--columns {text}: {role} is given twice; name one column")
        found[role] = column
    return found
