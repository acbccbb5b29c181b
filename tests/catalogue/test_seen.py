"""A set in one array is the set that Python has."""

from __future__ import annotations

import random

from catalogue.seen import SeenHashes


def test_it_holds_what_a_set_holds_through_growth_and_collisions() -> None:
    chance = random.Random(0)
    seen, known = SeenHashes(), set()
    for _ in range(20_000):
        key = chance.choice([chance.getrandbits(64), chance.getrandbits(12), chance.getrandbits(12) << 40])
        key = key or 1
        assert (key in seen) == (key in known)
        seen.add(key)
        known.add(key)
        assert key in seen
    assert len(seen) == len(known)
    assert all(key in seen for key in known)


def test_nothing_is_in_an_empty_one() -> None:
    assert 0 not in SeenHashes()
    assert 2**64 - 1 not in SeenHashes()
