"""Dirty data of many kinds: each is processed with the right value, skipped with the right reason, or refused.

A kind is a function that spoils a small clean data set and returns what has to follow. Which scan and which annotation
it spoils depends on the seed. The group *everything together* plants all kinds that are skipped at once, runs stage 1
to the audit, and compares all counts with what was planted.
"""

from __future__ import annotations

import functools

from tests.faults.dirty import audited, backgrounds, evaluated, fields, masks, names, scans, together
from tests.faults.dirty.world import count

KINDS = {
    "fields of annotation files": functools.partial(count, "fields of annotation files", fields.FAULTS),
    "masks": functools.partial(count, "masks", masks.FAULTS),
    "names and links of scans": functools.partial(count, "names and links of scans", names.FAULTS),
    "scans with items": functools.partial(count, "scans with items", scans.FAULTS),
    "benign scans": functools.partial(count, "benign scans", backgrounds.FAULTS),
    "evaluation": functools.partial(count, "evaluation", evaluated.FAULTS),
    "shards": functools.partial(count, "shards", audited.FAULTS),
    "everything together": together.count,
}
LONG, SHORT = 2000, 1
