"""Random generators that depend on the item that is made, never on the order."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, stage: str, *item: int) -> np.random.Generator:
    """Make the generator of one item of one stage.

    The generator is a pure function of the arguments: equal arguments give equal streams on every machine, different
    arguments give independent streams. So pair 7 is the same pair whether it is made first or last.

    Args:
        seed: the user's seed.
        stage: name of the consumer, so that two stages with the same seed have different streams.
        item: numbers of the item, for example the number of a pair.
    """
    name = "/".join([stage, str(int(seed)), *(str(int(part)) for part in item)])
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(digest[:16], "big")))
