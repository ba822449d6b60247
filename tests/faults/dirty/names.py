"""Faults of the names of scans, and links in the folder of scans."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable

from tests.faults.dirty.world import NAMES, Expect, Fault, World, copied, faults


def _found(world: World) -> Expect:
    return Expect(changed=dict.fromkeys(world.keys, NAMES))


def _lost(world: World) -> tuple[Expect, ...]:
    """The scan cannot be used: a reason is counted, or the name is refused."""
    reasons = ("image file missing", "image unreadable: cannot be read", "image unreadable: link without a target")
    return (*map(world.skip_scan, reasons), Expect(refused=("file_name",)), Expect(refused=("name",)))


def _listed(name: Callable[[str], str], moved: str = "") -> Fault:
    """List the scan under another name; the file may lie in another folder. It is found."""

    def fault(world: World) -> Expect:
        old = str(world.image["file_name"])
        if moved:
            target = world.root / "scans" / moved / old
            target.parent.mkdir(parents=True)
            world.scan.rename(target)
        world.image["file_name"] = name(old)
        return _found(world)

    return fault


def _renamed(name: str) -> Fault:
    """Rename the file, and list it so. Its old name only is kept if `name` has no ``{}``."""

    def fault(world: World) -> Expect:
        old = world.scan
        world.image["file_name"] = name.format(old.stem)
        old.rename(world.scan)
        return _found(world)

    return fault


def _unusable(change: Callable[[World], None]) -> Fault:
    def fault(world: World) -> tuple[Expect, ...]:
        expected = _lost(world)
        change(world)
        return expected

    return fault


def _name(name: Callable[[str], str]) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.image["file_name"] = name(str(world.image["file_name"]))

    return change


def _replaced(make: Callable[[World], None]) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.scan.unlink()
        make(world)

    return change


def _linked(world: World) -> Expect:
    """A scan in a cache outside the root, as DVC has it."""
    cache = world.root / "cache" / "7f"
    cache.mkdir(parents=True)
    shutil.move(world.scan, cache / "aa")
    world.scan.symlink_to(cache / "aa")
    return Expect()


def _all_linked(world: World) -> Expect:
    shutil.move(world.root / "scans", world.root / "elsewhere")
    (world.root / "scans").symlink_to(world.root / "elsewhere")
    return Expect()


def _outside(world: World) -> Expect:
    """The name leads to another picture outside the root; the one inside is taken."""
    name = str(world.image["file_name"])
    (world.root / name).write_bytes((world.root / "scans" / str(world.other_image["file_name"])).read_bytes())
    world.image["file_name"] = f"../{name}"
    return _found(world)


def _outside_only(world: World) -> tuple[Expect, ...]:
    name, expected = str(world.image["file_name"]), _lost(world)
    shutil.move(world.scan, world.root / name)
    world.image["file_name"] = f"../{name}"
    return expected


def _ambiguous(world: World) -> Expect:
    name = str(world.image["file_name"])
    for folder in ("a", "b"):
        (world.root / "scans" / folder).mkdir()
        shutil.copy(world.scan, world.root / "scans" / folder / name)
    world.scan.unlink()
    return Expect(refused=(f"a/{name}", f"b/{name}"))


def _listed_wins(world: World) -> Expect:
    """A copy with other pixels in a deeper folder does not matter."""
    (world.root / "scans" / "a").mkdir()
    other = world.root / "scans" / str(world.other_image["file_name"])
    shutil.copy(other, world.root / "scans" / "a" / str(world.image["file_name"]))
    return Expect()


def _twice(name: Callable[[str], str]) -> Fault:
    def fault(world: World) -> Expect:
        first = str(world.image["file_name"])
        world.content["images"].append(copied(world.image, id=77, file_name=name(first)))
        world.other["image_id"] = 77
        return Expect(refused=(first, name(first)))

    return fault


def _litter(world: World) -> Expect:
    scans = world.root / "scans"
    (scans / f"._{world.image['file_name']}").write_bytes(b"\0\5\x16\7")
    (scans / "Thumbs.db").write_bytes(b"x")
    with open(os.fsencode(scans) + b"/\xff\xfe.png", "wb") as file:
        file.write(world.scan.read_bytes())
    (scans / "loop").symlink_to(scans)
    return Expect()


def _decomposed(world: World) -> tuple[Expect, ...]:
    """Listed composed (NFC), on disk decomposed (NFD): two different names on Linux."""
    expected = (*_lost(world), _found(world))
    old, name = world.scan, "schlüssel.png"
    old.rename(old.with_name(unicodedata.normalize("NFD", name)))
    world.image["file_name"] = name
    return expected


FAULTS = faults(
    {
        "name with a backslash": _listed(lambda name: f"sub\\{name}", "sub"),
        "name with a missing folder": _listed(lambda name: f"train/{name}"),
        "name without its folders": _listed(lambda name: name, "a/b"),
        "name with other folders": _listed(lambda name: f"x/y/{name}", "a/b/c"),
        "name absolute": _listed(lambda name: f"/data/pidray/{name}"),
        "name of Windows": _listed(lambda name: f"C:\\data\\{name}"),
        "name of a web address": _listed(lambda name: f"https://host/x/{name}"),
        "name with ./": _listed(lambda name: f"./{name}"),
        "name with two slashes": _listed(lambda name: f"sub//{name}", "sub"),
        "name that leaves its folder": _outside,
        "name of a file outside only": _outside_only,
        "name of two files": _ambiguous,
        "name as listed, and a copy": _listed_wins,
        "two entries of one file": _twice(lambda name: f"old/{name}"),
        "two entries of one name": _twice(lambda name: f"./{name}"),
        "name with spaces": _renamed(" {} x .png"),
        "name with umlauts": _renamed("äöü-{}-µ.png"),
        "name with an emoji": _renamed("{}-🧳.png"),
        "name with #": _renamed("{}#7.png"),
        "name with %": _renamed("{}%20%2e.png"),
        "name with brackets": _renamed("[{}]*?{{x}}.png"),
        "name with quotes": _renamed("'{}'\"; rm.png"),
        "name with a line break": _renamed("{}\n.png"),
        "name of 240 bytes": _renamed("{}" + "x" * 230 + ".png"),
        "name of 5,000 bytes": _unusable(_name(lambda name: "y" * 5000 + name)),
        "name with a null character": _unusable(_name(lambda name: f"\0{name}")),
        "name in capitals": _unusable(_name(str.upper)),
        "name is a folder": _unusable(_name(lambda name: "..")),
        "name with half a surrogate": _unusable(_name(lambda name: f"\ud800{name}")),
        "name decomposed on disk": _decomposed,
        "scan behind a link": _linked,
        "folder behind a link": _all_linked,
        "dangling link": _unusable(_replaced(lambda world: world.scan.symlink_to("nowhere"))),
        "link to itself": _unusable(_replaced(lambda world: world.scan.symlink_to(world.scan.name))),
        "link to a device": _unusable(_replaced(lambda world: world.scan.symlink_to("/dev/zero"))),
        "folder in place of a scan": _unusable(_replaced(lambda world: world.scan.mkdir())),
        "pipe in place of a scan": _unusable(_replaced(lambda world: os.mkfifo(world.scan))),
        "litter among the scans": _litter,
    }
)
