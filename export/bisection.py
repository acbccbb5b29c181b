"""The fewest parts that have to be left alone for a whole to pass: which operators need float32.

Zeller's delta debugging (ddmin; Zeller and Hildebrandt, 2002): parts are kept in ever finer groups; what the check
passes without is dropped.  The result is minimal in that no single part of it can be dropped as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Part = TypeVar("Part")


def fewest_kept(parts: Sequence[Part], passes: Callable[[list[Part]], bool]) -> list[Part] | None:
    """Finds a minimal list of parts to keep.

    Args:
        parts: all that could be kept.
        passes: whether it is enough to keep these; is asked about O(n log n) lists, O(n²) at worst.

    Returns:
        The kept parts in their order, [] when nothing has to be kept, None when not even keeping all is enough.
    """
    if passes([]):
        return []
    kept = list(parts)
    if not passes(kept):
        return None
    groups = 2
    while len(kept) > 1:
        size = -(-len(kept) // groups)
        chunks = [kept[start : start + size] for start in range(0, len(kept), size)]
        for index, chunk in enumerate(chunks):
            rest = [part for other, candidate in enumerate(chunks) if other != index for part in candidate]
            if passes(chunk):
                kept, groups = chunk, 2
                break
            if len(chunks) > 2 and passes(rest):
                kept, groups = rest, max(groups - 1, 2)
                break
        else:
            if groups >= len(kept):
                break
            groups = min(2 * groups, len(kept))
    return kept
