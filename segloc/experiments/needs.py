"""Checks that shards were made as a pretraining of an experiment needs them."""

from __future__ import annotations

import dataclasses

from segloc.common.contract import Index
from segloc.common.errors import InputError
from segloc.common.parse import shown
from segloc.data.shard_folder import ShardFolder
from segloc.settings.experiments import Needs

# Values of indexes that lack a parameter, which was added later or is left out.
DEFAULTS = {"positives": "class", "on_matter": 0.0, "occluded": 0.0}


def check_shards(source: str, needs: Needs, key: str) -> None:
    """Check that shards exist and that their index says what a pretraining needs.

    Args:
        source: the shards, see `ShardFolder.open`.
        needs: what the index must say.
        key: dotted key of `needs`, for the message.

    Raises:
        InputError: the shards are missing, or their index says otherwise.
    """
    how = f"; make such shards with: {needs.make}" if needs.make else ""
    try:
        index = ShardFolder.open(source).index
    except InputError as error:
        raise type(error)(f"{error}{how}") from error
    for field in dataclasses.fields(needs):
        wanted = getattr(needs, field.name)
        if field.name == "make" or wanted in (None, "", ()):
            continue
        found = _recorded(index, field.name)
        if found is None:
            raise InputError(
                f"{source}: its index does not say {field.name}, but {key}.{field.name} is {_text(wanted)}{how}; or "
                "set the latter to nothing if you know that it is right"
            )
        if found != wanted:
            raise InputError(
                f"{source}: was made with {field.name} {_text(found)}, but {key}.{field.name} is {_text(wanted)}{how}"
            )


def _recorded(index: Index, name: str) -> object:
    if name == "pairs":
        return index.num_pairs
    value = index.parameters.get(name, DEFAULTS.get(name))
    return tuple(value) if isinstance(value, list) else value


def _text(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else shown(value)
