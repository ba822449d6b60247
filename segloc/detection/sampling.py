"""Seeds of the sampling of anchors and proposals.

Both engines sample the images of a batch in order, first the anchors of all, then the proposals of all, from torch's
global generator. Each image has seeds of its own (`Example.seeds`), so that its samples depend neither on the images
beside it nor on the process that trains on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from segloc.detection.data import Example

ANCHORS, PROPOSALS = range(2)  # positions in `Example.seeds`


def seeds_of(batch: Sequence[Example], what: int) -> Iterator[int]:
    """Return the seeds of the images of a batch, for their anchors or their proposals."""
    return iter([example.seeds[what] for example in batch if example.seeds])


def seed_next(seeds: Iterator[int]) -> None:
    """Seed torch's global generator for the next image; without a seed it goes on as it is."""
    seed = next(seeds, None)
    if seed is not None:
        torch.manual_seed(seed)
