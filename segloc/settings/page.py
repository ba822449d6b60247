"""``python -m segloc.settings.page``: generate docs/settings.md from the settings' declarations."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

import yaml

from segloc.common.files import write_atomic
from segloc.settings.experiments import Experiment
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.pretraining import PretrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
HEAD = """# Settings

Reference of all recipe settings. `python -m segloc.settings.page` generates this page.

A recipe is a YAML file with the settings that differ from the defaults. `base: other.yaml` reads another recipe first.
`key=value` on the command line changes one setting by its dotted key: `optim.batch=32`. The value of a text setting is
used literally, any other is parsed as YAML. An unknown key is an error that names the nearest valid key. Every run
writes all its settings to `config.yaml`.

The texts of a list are literal, too: `"data.train=[a #2/train.json, 2024]"` names the folders `a #2` and `2024`. Only a
text with a comma, a bracket, or blanks at its ends needs quotes inside the list: `'data.train=["a, b.json", images]'`.
In a recipe file YAML's rules hold: put names such as `2024`, `null` and `a #2` in quotes. `~` at the start of a path is
your home folder.
"""
PARTS = (
    ("Pretraining", "`segloc.pretrain --config`, recipes in `detectron_configs/pretrain/`", PretrainConfig),
    ("Fine-tuning", "`segloc.finetune --config`, recipes in `detectron_configs/finetune/`", FinetuneConfig),
    ("Experiments", "`segloc.experiment`, recipes in `detectron_configs/experiment/`", Experiment),
)


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for title, where, schema in PARTS:
        parts += [f"\n## {title}\n\n{where}.\n", *_tables(schema, "")]
    return "".join(parts)


def _tables(schema: Any, prefix: str) -> list[str]:
    """Return a table of the schema's own settings, then the tables of its sections."""
    hints = typing.get_type_hints(schema)
    own = [field for field in dataclasses.fields(schema) if not dataclasses.is_dataclass(hints[field.name])]
    tables = []
    if own:
        about = inspect.cleandoc(schema.__doc__ or "").splitlines()[0].replace("``", "`")
        rows = [f"| `{prefix}{field.name}` | `{_default(field)}` | {_meaning(field)} |\n" for field in own]
        tables.append(f"\n{about}\n\n| key | default | meaning |\n|---|---|---|\n{''.join(rows)}")
    for name, hint in hints.items():
        for section in filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))):  # X, X | None, dict[str, X]
            named = ".NAME" if typing.get_origin(hint) is dict else ""
            tables += _tables(section, f"{prefix}{name}{named}.")
    return tables


def _default(field: dataclasses.Field[Any]) -> str:
    made: Any = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _meaning(field: dataclasses.Field[Any]) -> str:
    meaning = field.metadata["meaning"].replace("``", "`").replace("|", "\\|")
    limits = field.metadata["limits"].words("`")
    return f"{meaning} {limits[0].upper()}{limits[1:]}." if limits else meaning


def main() -> None:
    """Write docs/settings.md."""
    write_atomic(PAGE, page().encode())


if __name__ == "__main__":
    main()
