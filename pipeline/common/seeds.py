"""Random generators that depend on what is being made, never on the order it is made in."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, stage: str, *item: int) -> np.random.Generator:
    """Make the generator of one item of one stage.

    A pure function: equal arguments give equal streams on every machine, and different ones independent streams. So
    pair 7 is the same pair whether it is the first one made or the last.

    Args:
        seed: the user's seed.
        stage: name of the consumer, so that two stages with the same seed do not share a stream.
        item: what is drawn for, for example the number of a pair.
    """
    name = "/".join([stage, str(int(seed)), *(str(int(part)) for part in item)])
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(digest[:16], "big")))
