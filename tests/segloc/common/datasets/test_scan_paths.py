import itertools
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from segloc.common.datasets import folder
from segloc.common.datasets.scan_paths import bare_name, below, resolve, walk
from segloc.common.errors import InputError
from segloc.common.images import ImageError, read_file


def tree(root: Path, *names: str) -> Path:
    """Files that contain their own name."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def found(root: Path, *names: str) -> list[str | None]:
    files = resolve(root, names)
    assert list(files) == list(dict.fromkeys(names))
    return [None if files[name] is None else str(files[name].relative_to(root)) for name in names]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "a.png"),
        ("cam2/a.png", "cam2/a.png"),
        ("./cam2//a.png", "cam2/a.png"),
        ("cam2\\a.png", "cam2/a.png"),
        (".\\cam2\\a.png", "cam2/a.png"),
        ("part1\\0001.png", "part1\\0001.png"),  # a file of this name comes before a folder
        ("gone/b.png", "deep/er/b.png"),
        ("gone\\b.png", "deep/er/b.png"),
        ("b.png", "deep/er/b.png"),
        ("/data/x/b.png", "deep/er/b.png"),
        ("C:\\data\\b.png", "deep/er/b.png"),
        ("C:/data/b.png", "deep/er/b.png"),
        ("\\\\server\\share\\b.png", "deep/er/b.png"),
        ("../x/b.png", "deep/er/b.png"),
        ("..\\x\\b.png", "deep/er/b.png"),
        ("https://host/bucket/b.png", "deep/er/b.png"),
        ("cam2/../deep/er/b.png", "deep/er/b.png"),
        ("gone/part2\\0002.png", "deep/part2\\0002.png"),
        ("50% #1 \U0001f512.png", "50% #1 \U0001f512.png"),
        ("line\nbreak.png", "line\nbreak.png"),
        ("trailing.png ", "trailing.png "),
        ("trailing.png", None),
        ("B.PNG", None),
        ("cam2", None),
        ("cam2/", None),
        ("", None),
        (".", None),
        ("..", None),
        ("/", None),
        ("\\", None),
        ("a\0.png", None),
        ("x" * 300 + ".png", None),
        ("y/" * 3000 + "z.png", None),
        ("\ud800.png", None),
        (".hidden/c.png", ".hidden/c.png"),
        ("c.png", None),  # hidden folders are not searched
    ],
)
def test_a_name_finds_its_file(name: str, file: str | None, tmp_path: Path) -> None:
    root = tree(
        tmp_path / "im", "a.png", "cam2/a.png", "part1\\0001.png", "part1/0001.png", "deep/er/b.png",
        "deep/part2\\0002.png", "50% #1 \U0001f512.png", "line\nbreak.png", "trailing.png ", ".hidden/c.png",
    )  # fmt: skip
    tree(tmp_path, "x/b.png", "secret.png")
    assert found(root, name) == [file]


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    root = tree(tmp_path / "im", "a.png")
    tree(tmp_path, "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "..\\secret.png", "im/../../secret.png"):
        assert found(root, name) == [None]


def test_entries_that_are_one_file_are_named(tmp_path: Path) -> None:
    root = tree(tmp_path, "scan.png", "sub/only.png")
    for names in (
        ["cam1/scan.png", "cam2/scan.png"],
        ["scan.png", "cam1/scan.png"],
        ["scan.png", "./scan.png"],
        ["scan.png", "/elsewhere/scan.png"],
        ["sub/only.png", "sub\\only.png"],
        ["scan.png", "scan.png"],
    ):
        pattern = f"{re.escape(names[0])}' and '{re.escape(names[1])}'.* same file"
        for order in (names, [*names, "missing.png"]):
            with pytest.raises(InputError, match=pattern):
                resolve(root, order)
    assert found(root, "gone.png", "gone.png") == [None, None]


def test_several_files_of_a_bare_name_are_listed(tmp_path: Path) -> None:
    root = tree(tmp_path, "cam1/scan.png", "cam2/scan.png")
    with pytest.raises(InputError, match=r"'cam3/scan.png' .* 2 files .* 'cam1/scan.png', 'cam2/scan.png'"):
        resolve(root, ["cam3/scan.png"])
    assert found(root, "cam1/scan.png", "cam2/scan.png") == ["cam1/scan.png", "cam2/scan.png"]
    tree(tmp_path, *(f"cam{number}/scan.png" for number in range(3, 30)))
    with pytest.raises(InputError, match=r"29 files .* and 19 more"):
        resolve(root, ["scan.png"])


def test_the_tree_is_walked_once_and_only_when_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, *(f"{number % 7}/{number}.png" for number in range(50)))
    calls = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: calls.append(path) or scandir(path))
    names = [f"{number % 7}/{number}.png" for number in range(50)]
    assert found(root, *names) == names
    assert not calls
    assert found(root, *(bare_name(name) for name in names)) == names
    assert len(calls) == 8


def test_composed_and_decomposed_letters_are_one_name_if_that_is_unambiguous(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Koffer ü.png") for form in ("NFC", "NFD"))
    assert composed != decomposed
    root = tree(tmp_path / "1", f"cam1/{decomposed}", f"cam2/{decomposed}")
    assert found(root, f"cam1/{composed}") == [f"cam1/{decomposed}"]
    with pytest.raises(InputError, match="2 files"):
        resolve(root, [f"cam3/{composed}"])
    root = tree(tmp_path / "2", composed, f"x/{decomposed}")
    assert found(root, composed, f"x/{decomposed}") == [composed, f"x/{decomposed}"]
    assert found(root, f"y/{decomposed}") == [f"x/{decomposed}"]


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    raw = os.fsdecode(b"gep\xe4ck.png")
    root = tree(tmp_path / os.fsdecode(b"daten\xff"), f"deep/{raw}")
    assert found(root, f"deep/{raw}", "gepäck.png") == [f"deep/{raw}", None]
    assert found(root, f"gone/{raw}") == [f"deep/{raw}"]


def test_links_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    store = tree(tmp_path / "store", "ab/cdef", "part/d.png")
    root = tree(tmp_path / "real", "a.png")
    (root / "b.png").symlink_to(store / "ab" / "cdef")
    (root / "same.png").symlink_to(store / "ab" / "cdef")  # a store keeps equal scans once
    (root / "part").symlink_to(store / "part")
    (tmp_path / "im").symlink_to(root)
    names = ["a.png", "b.png", "same.png", "part/d.png"]
    assert found(tmp_path / "im", *names) == names
    assert found(tmp_path / "im", "x/d.png") == ["part/d.png"]
    assert (tmp_path / "im" / "b.png").read_bytes() == b"ab/cdef"


def test_a_link_to_another_scan_of_the_folder_is_that_scan(tmp_path: Path) -> None:
    root = tree(tmp_path, "a.png", "sub/c.png")
    (root / "b.png").symlink_to("a.png")
    (root / "more").symlink_to("sub")
    assert found(root, "b.png") == ["b.png"]
    for names in (["a.png", "b.png"], ["sub/c.png", "more/c.png"]):
        with pytest.raises(InputError, match="same file"):
            resolve(root, names)
    assert found(root, "x/c.png") == ["sub/c.png"]
    (root / "sub" / "b.png").symlink_to("../a.png")
    assert found(root, "x/b.png") == ["b.png"]  # both links are one file


def test_a_link_without_a_target_keeps_its_place(tmp_path: Path) -> None:
    """No other file of its bare name is used for it."""
    root = tree(tmp_path, "cam2/scan.png")
    (root / "cam1").mkdir()
    (root / "cam1" / "scan.png").symlink_to("/nowhere/scan.png")
    (root / "self.png").symlink_to("self.png")
    assert found(root, "cam1/scan.png", "cam2/scan.png", "self.png") == ["cam1/scan.png", "cam2/scan.png", "self.png"]
    for name in ("cam1/scan.png", "self.png"):
        with pytest.raises(ImageError, match="link without a target"):
            read_file(root / name)


def test_pipes_and_folders_are_no_scans(tmp_path: Path) -> None:
    root = tree(tmp_path, "folder.png/x.png")
    os.mkfifo(root / "pipe.png")
    (root / "link.png").symlink_to("pipe.png")
    assert found(root, "pipe.png", "link.png", "folder.png") == [None, None, None]
    assert folder.scans(root) == ["folder.png/x.png"]
    with pytest.raises(ImageError, match="not a regular file"):
        read_file(root / "pipe.png")


def test_broken_links_are_listed_as_scans(tmp_path: Path) -> None:
    root = tree(tmp_path, "a.png")
    for name in ("gone.jpg", "part2", "v1.2", "notes.txt"):
        (root / name).symlink_to("/nowhere/at/all")
    (root / "self.JPG").symlink_to("self.JPG")
    assert folder.scans(root) == ["a.png", "gone.jpg", "part2", "self.JPG", "v1.2"]


def test_each_folder_is_visited_once_by_its_own_path(tmp_path: Path) -> None:
    root = tree(tmp_path / "im", "z/a.png", "z/deep/b.png")
    (root / "a link").symlink_to("z")
    (root / "z" / "deep" / "up").symlink_to(root)
    (root / "more").symlink_to(tree(tmp_path / "disk", "c.png"))
    (root / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(root / "z")
    assert sorted(entry.path for entry in walk(root)) == ["again/c.png", "z/a.png", "z/deep/b.png"]


def test_our_own_names_are_joined_as_they_are(tmp_path: Path) -> None:
    names = ["part1\\0001.png", "a/b..png", "C:\\x.png", " .png", "a b/#1%20.png"]
    root = tree(tmp_path, *names)
    assert folder.scans(root) == sorted(names)
    for name in names:
        assert below(root, name).read_bytes() == name.encode()
    for name in ("../x.png", "/etc/passwd", "a/../../x.png", ".."):
        with pytest.raises(ValueError, match="leaves its folder"):
            below(root, name)


def test_every_name_is_found_by_its_rule_or_refused(tmp_path: Path) -> None:
    """A property: on random trees, the result equals the three rules written down plainly."""
    rng = np.random.default_rng(0)
    parts, bases = ["a", "b", "c\\d", "d"], ["1.png", "2.png", "d\\1.png", "3.png"]
    candidates = [
        "/".join((*folders, base)) for n in range(3) for folders in itertools.product(parts, repeat=n) for base in bases
    ]
    kinds = {"file": 0, "missing": 0, "several": 0, "shared": 0}
    for trial in range(150):
        chosen = rng.choice(candidates, rng.integers(1, 9), replace=False).tolist()
        root = tree(tmp_path / str(trial), *chosen)
        listed = [style(rng, str(name)) for name in rng.choice(candidates, 3, replace=False)]
        expected = [by_the_rules(chosen, name) for name in listed]
        present = [path for path in expected if path is not None]
        if "several" in expected:
            kinds["several"] += 1
            with pytest.raises(InputError, match="have its bare name"):
                resolve(root, listed)
        elif len(set(present)) < len(present):
            kinds["shared"] += 1
            with pytest.raises(InputError, match="same file"):
                resolve(root, listed)
        else:
            kinds["file"] += len(present)
            kinds["missing"] += len(expected) - len(present)
            assert found(root, *listed) == expected
    assert min(kinds.values()) >= 10, kinds


def style(rng: np.random.Generator, name: str) -> str:
    forms = [name, name.replace("/", "\\"), f"./{name}", f"/data/{name}", f"../{name}", f"C:\\{name}"]
    return forms[int(rng.integers(len(forms)))]


def by_the_rules(files: list[str], name: str) -> str | None:
    for form in (name, name.replace("\\", "/")):
        if form.startswith(("/", "C:/")) or ".." in form.split("/"):
            continue
        if (plain := form.removeprefix("./")) in files:
            return plain
    for base in (name.split("/")[-1], name.replace("\\", "/").split("/")[-1]):
        if matches := [file for file in files if file.split("/")[-1] == base]:
            return matches[0] if len(matches) == 1 else "several"
    return None


def test_a_hidden_file_is_found_by_its_bare_name_and_only_for_its_own_entry(tmp_path):
    """Without it, an entry whose file is missing would be read from the hidden file of its bare name."""
    tree(tmp_path, ".a.png", "b.png")
    assert resolve(tmp_path, ["cam1/.a.png", "b.png"]) == {
        "cam1/.a.png": tmp_path / ".a.png",
        "b.png": tmp_path / "b.png",
    }
    with pytest.raises(InputError, match="are the same file"):
        resolve(tmp_path, ["cam1/.a.png", "cam2/.a.png"])
    tree(tmp_path, "deep/.a.png")
    with pytest.raises(InputError, match="2 files have its bare name"):
        resolve(tmp_path, ["cam1/.a.png"])
