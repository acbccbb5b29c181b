"""Cells of a feed as text: what exported tables write for nothing, numbers that are ids, text that came as bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from uuid import UUID

from catalogue.tables import RowFault, not_utf8

# fmt: off
NULL_WORDS = frozenset({
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
})
# fmt: on
"""Texts that mean "nothing here" in exported tables: those of pandas.read_csv, and the empty text."""


def text_of(cells: Mapping[str, object], column: str) -> str | None:
    """A cell as text, None where there is nothing: a missing cell, NaN, or a word that means so.

    Whole numbers are written without a point, whichever type they came in: 7, 7.0 and Decimal("7.00") are "7".

    Raises:
        RowFault: the cell is not UTF-8, or of a kind that is no text.
    """
    cell = cells.get(column)
    if isinstance(cell, bytes):
        try:
            cell = cell.decode()
        except UnicodeDecodeError as error:
            raise RowFault("not UTF-8", f"column {column!r} holds bytes that are not UTF-8: {error}") from error
    if isinstance(cell, str):
        if not_utf8(cell):
            raise RowFault("not UTF-8", f"column {column!r} holds text that is not UTF-8")
        return None if cell.strip() in NULL_WORDS else cell
    if is_nothing(cell):
        return None
    if isinstance(cell, (float, Decimal)) and math.isfinite(cell) and cell == int(cell):
        return str(int(cell))  # whole numbers beside a null arrive as floats
    if isinstance(cell, Decimal):
        return f"{cell.normalize():f}"
    if isinstance(cell, (int, float, UUID, date)):
        return str(cell)
    raise RowFault("bad cell", f"column {column!r} holds {type(cell).__name__}, not text")


def is_nothing(cell: object) -> bool:
    """Whether a cell is null or NaN."""
    return cell is None or (isinstance(cell, (float, Decimal)) and math.isnan(cell))
