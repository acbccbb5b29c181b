"""A set of hashes in little memory, by which a feed of millions of rows finds the ids that repeat.

Open addressing with linear probing (Knuth, The Art of Computer Programming 3, 6.4) in one array of machine words:
between 12 and 24 bytes a hash, where a set of Python ints takes about 100. The hashes are uniform already.
"""

from __future__ import annotations

from array import array

FIRST_PLACES = 2**10


class SeenHashes:
    """64-bit hashes; 0, which marks a free place, stands for 1."""

    def __init__(self) -> None:
        self._places = array("Q", bytes(8 * FIRST_PLACES))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: int) -> bool:
        key = key or 1
        return self._places[_place(self._places, key)] == key

    def add(self, key: int) -> None:
        """Takes a hash in."""
        key = key or 1
        place = _place(self._places, key)
        if self._places[place] == key:
            return
        self._places[place] = key
        self._count += 1
        if 3 * self._count > 2 * len(self._places):
            larger = array("Q", bytes(16 * len(self._places)))
            for known in self._places:
                if known:
                    larger[_place(larger, known)] = known
            self._places = larger


def _place(places: array[int], key: int) -> int:
    """Where a hash is, or would be put."""
    last = len(places) - 1
    place = key & last
    while (found := places[place]) and found != key:
        place = (place + 1) & last
    return place
