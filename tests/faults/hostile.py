"""Hostile files: names that lead elsewhere, code, and text that HTML would run. Nothing runs or leaves its root.

Each attack that runs code would make a marker file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import pickle
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import torch

from segloc import evaluate
from segloc.common.contract import read_index
from segloc.common.datasets import Split
from segloc.common.datasets.coco import read_instances
from segloc.common.errors import InputError
from segloc.common.files import write_json
from segloc.common.skips import Skips
from segloc.data.shard_folder import ShardFolder
from segloc.detection.coco_eval import METRICS
from segloc.detection.detector import engine_name
from segloc.detection.eval_tables import evaluation_markdown
from segloc.detection.splits import read_split
from segloc.detection.weights import read_detector, recipe_inside
from segloc.models.initial_weights import read_start
from segloc.reporting.page import render
from segloc.reporting.results_table import results_markdown, results_table
from segloc.reporting.run_results import load_run
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load, parse
from segloc.training.run_folder import write_skips
from tests.faults import common, readers
from tests.faults.common import Count
from tests.segloc.conftest import write_shards
from tests.segloc.toy_coco import write_split

LONG = SHORT = 120  # the list of attacks is fixed
MARKER = "ran"
Attack = Callable[[Path], str | None]


class _Runs:
    """Pickles to a call that creates the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


def _refused(read: Callable[[], object]) -> str | None:
    try:
        read()
    except InputError:
        return None
    return "was accepted"


def _recipes(folder: Path) -> list[str]:
    command = f"touch {folder / MARKER}"
    return [
        *("${oc.env:HOME}", f"${{oc.create:{{_target_: os.system, command: {command}}}}}", "${oc.decode:'[1]'}"),
        *(f"$({command})", f"`{command}`", f"; {command}", f"| {command}", f"pipe:{command}", f"file:{command}"),
    ]


def _tags(folder: Path) -> list[str]:
    command = f"touch {folder / MARKER}"
    return [
        f"!!python/object/apply:os.system ['{command}']",
        f"!!python/object/new:os.system ['{command}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object:pathlib.Path {}",
        f"!os.system ['{command}']",
    ]


def code_in_recipes(folder: Path) -> list[str | None]:
    """Text of a recipe stays text, and a tag of YAML is refused."""
    found: list[str | None] = []
    for text in _recipes(folder):
        path = folder / "r.yaml"
        path.write_text(json.dumps({"data": {"root": text}}))
        found.append(None if load(FinetuneConfig, path).data.root == text else "was changed")
    for tag in _tags(folder):
        found.append(_refused(functools.partial(parse, FinetuneConfig, f"data: {tag}", "here")))
        found.append(_refused(functools.partial(parse, FinetuneConfig, f"data: {{root: {tag}}}", "here")))
    return found


def code_in_checkpoints(folder: Path) -> list[str | None]:
    """Recipes in checkpoints, through ``segloc.evaluate`` on each engine; and pickled calls."""
    readers.prepare("checkpoints", folder)
    content = torch.load(folder / "detector.pth", weights_only=True)
    found: list[str | None] = []
    for engine in ("torchvision", "detectron2"):
        with contextlib.suppress(InputError):
            engine_name(engine)
            for text in (*_recipes(folder), *_tags(folder)):
                recipe = f"data: {{root: {json.dumps(text)}}}" if text in _recipes(folder) else f"data: {text}"
                torch.save({**content, "engine": engine, "config": recipe}, folder / "x.pth")
                with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
                    code = evaluate.main(["--weights", str(folder / "x.pth"), "--out", str(folder / "e.json")])
                found.append(
                    None if code == 2 and errors.getvalue().count("\n") == 1 else f"{code} {errors.getvalue()}"
                )
                if text in _recipes(folder):
                    kept = recipe_inside(read_detector(folder / "x.pth"), "here").data.root
                    found.append(None if kept == text else "was changed")
    for data in (pickle.dumps(_Runs(folder / MARKER)), pickle.dumps({"backbone": _Runs(folder / MARKER)})):
        (folder / "y.pth").write_bytes(data)
        found.append(_refused(functools.partial(read_start, str(folder / "y.pth"))))
    torch.save({"format_version": 2, "backbone": _Runs(folder / MARKER)}, folder / "z.pth")
    found.append(_refused(functools.partial(read_start, str(folder / "z.pth"))))
    return found


NAMES = ("../x.tar", "/etc/passwd", "pipe:touch ran", "file:///etc/passwd", "a/../../b.tar", "s3://x/y", "$(touch ran)")


def names_in_annotations(folder: Path) -> list[str | None]:
    """A scan of an annotation file lies below the image root, in both stages, or is missing."""
    write_split(folder / "a.json", folder / "root" / "scans", 1, seed=0)
    content, root = json.loads((folder / "a.json").read_text()), folder / "root" / "scans"
    (folder / "root" / "secret.png").write_bytes(next(root.iterdir()).read_bytes())
    secret, found = folder / "root" / "secret.png", []
    names = (
        "../secret.png",
        "x/../../secret.png",
        "..\\secret.png",
        str(secret),
        f"file://{secret}",
        "./../secret.png",
    )
    for name in (*names, *NAMES):
        content["images"][0]["file_name"] = name
        (folder / "a.json").write_text(json.dumps(content))
        with contextlib.suppress(InputError):
            for scan in read_split(Split("a", folder / "a.json", root)).scans:
                found.append(None if scan.path.resolve().is_relative_to(root.resolve()) else f"{name} was followed")
        with contextlib.suppress(InputError):
            for one in read_instances(folder / "a.json", root).instances:
                inside = (root / one.image).resolve().is_relative_to(root.resolve())
                found.append(None if inside else f"{name} was followed")
        found.append(None)  # refused, or without instances
    return found


def names_in_indexes(folder: Path) -> list[str | None]:
    """Shards and tables of an index have the contract's names; commands are no URLs."""
    write_shards(folder / "shards", shards=1, per_shard=3)
    index, path = read_index(folder / "shards"), folder / "shards" / "index.json"
    found: list[str | None] = []
    for name in NAMES:
        shard = dataclasses.replace(index.shards[0], name=name)
        path.write_bytes(dataclasses.replace(index, shards=(shard,)).to_json())
        found.append(_refused(functools.partial(ShardFolder.open, str(folder / "shards"))))
        assert index.sources is not None
        path.write_bytes(dataclasses.replace(index, sources=dataclasses.replace(index.sources, name=name)).to_json())
        found.append(_refused(functools.partial(ShardFolder.open, str(folder / "shards"))))
    for url in (f"pipe:touch {folder / MARKER}", f"PIPE:touch {folder / MARKER}", f"simplecache::pipe:touch {MARKER}"):
        found.append(_refused(functools.partial(ShardFolder.open, url)))
    return found


def members_of_tars(folder: Path) -> list[str | None]:
    """Links, devices, and names that lead elsewhere, in place of one member of a whole pair."""
    write_shards(folder / "shards", shards=1, per_shard=1)
    with tarfile.open(folder / "shards" / "pairs-000000.tar") as whole:
        members = [(one.name, whole.extractfile(one).read()) for one in whole]  # type: ignore[union-attr]
    found = [None if _accepted(folder / "shards", members, -1, tarfile.REGTYPE, "") else "a whole pair was refused"]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.REGTYPE):
        for position in range(len(members)):
            for name in (members[position][0], "../../x", "/etc/passwd"):
                if kind != tarfile.REGTYPE or name != members[position][0]:
                    accepted = _accepted(folder / "shards", members, position, kind, name)
                    found.append(f"{name} of type {kind!r} was accepted" if accepted else None)
    return found


def _accepted(shards: Path, members: list[tuple[str, bytes]], position: int, kind: bytes, name: str) -> bool:
    """Write the shard with another member in one position, if any, and its index; return whether it is read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as new:
        for number, (own, content) in enumerate(members):
            member = tarfile.TarInfo(name if number == position else own)
            if number == position:
                member.type, member.linkname = kind, members[0][0] if kind == tarfile.LNKTYPE else "/etc/passwd"
            member.size = len(content) if member.isreg() else 0
            new.addfile(member, io.BytesIO(content))
    data, index = buffer.getvalue(), read_index(shards)
    (shards / "pairs-000000.tar").write_bytes(data)
    shard = dataclasses.replace(index.shards[0], bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (shards / "index.json").write_bytes(dataclasses.replace(index, shards=(shard,)).to_json())
    return _refused(lambda: [*ShardFolder.open(str(shards)).pairs()]) is not None


SCRIPTS = ("<script>alert(1)</script>", "</svg><script>x</script>", "\"onload='x'", "--><script>", "</title><script>")


def text_in_pages(folder: Path) -> list[str | None]:
    """Every text from data is escaped in the report, in its table, and in the table of an evaluation."""
    readers.prepare("metrics lines and reports", folder)
    return [wrong for text in SCRIPTS for wrong in map(_live, _pages(folder / "good", text))]


def _pages(runs: Path, text: str) -> list[str]:
    """Pages of two runs whose names, classes, test sets, scans and descriptions are `text`."""
    run = runs / "finetune"
    about, evaluation = (json.loads((run / name).read_text()) for name in ("run.json", "evaluation.json"))
    skips = Skips("scans", 9, Counter({text: 2}), {text: [text]})
    figures = {**evaluation["subsets"]["easy"]["bbox"], "per_class": {text: dict.fromkeys(METRICS, 5.0)}}
    part = {"images": 3, "digest": text, "bbox": figures, "segm": figures}
    other = {**evaluation, "subsets": {text: part}, "mean": part, "pooled": part, "classes": [text]}
    other |= {"skipped": {text: [skips.to_json()]}}
    hostile = {**about, **dict.fromkeys(("engine", "device", "git_revision", "command", "weights"), text)}
    write_json(run / "run.json", {**hostile, "classes": [text]})
    write_json(run / "evaluation.json", {**other, "engine": text})
    write_skips(run, [skips])
    found = [dataclasses.replace(load_run(folder), name=text) for folder in (run, runs / "pretrain")]
    write_json(run / "run.json", about)
    write_json(run / "evaluation.json", evaluation)
    tables = [results_markdown(results_table(found)), evaluation_markdown(other)]
    return [render(found, [(text, "")], text), *(_ESCAPED.sub("", table) for table in tables)]


_ESCAPED = re.compile(r"\\.")  # letters that Markdown shows as they are


def _live(page: str) -> str | None:
    parser = _Live()
    parser.feed(page)
    return f"has {parser.live[0]}" if parser.live else None


class _Live(HTMLParser):
    """Collects the elements and attributes of a page that run code."""

    def __init__(self) -> None:
        super().__init__()
        self.live: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.live += [tag] if tag == "script" else []
        self.live += [name for name, _ in attrs if name.startswith("on")]


ATTACKS: dict[str, Callable[[Path], list[str | None]]] = {
    "code in recipes": code_in_recipes,
    "code in checkpoints": code_in_checkpoints,
    "names in annotation files": names_in_annotations,
    "names in indexes": names_in_indexes,
    "members of tars": members_of_tars,
    "text in pages": text_in_pages,
}


def attack(cases: int, seed: int, kind: str) -> Count:
    """Run all attacks of a kind, whatever `cases` and `seed` are: the list is fixed."""
    del cases, seed
    count, folder = Count(kind), common.fresh(f"hostile-{kind.replace(' ', '-')}")
    with contextlib.chdir(folder):
        for number, problem in enumerate(ATTACKS[kind](folder)):
            count.add(f"attack {number}", problem)
    if (folder / MARKER).exists():
        count.add("all", "a command ran")
    return count


KINDS = {kind: functools.partial(attack, kind=kind) for kind in ATTACKS}

if __name__ == "__main__":
    sys.exit(common.main(sys.modules[__name__]))
