"""Runs every command of README and docs, at the smaller sizes of one table, in a copy of the tracked files.

Blocks that are marked ``<!-- not run: REASON -->`` are left out.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.imports import ROOT

# Pattern and replacement, applied in order to each command. What stands in a page is for real data and GPUs.
SMALLER = (
    (r"^\. \.venv/bin/activate$", "true"),
    (r"--processes \d+", "--processes 2"),
    (r"(segloc\.pretrain .*)", r"\1 --config detectron_configs/pretrain/demo_r18.yaml optim.steps=2 queue.size=64"),
    (r"sdanet_r101_fair\.yaml(.*)", r"demo_r18.yaml\1 train.iterations=2 optim.batch=2 data.image_size=64"),
    (
        r"(segloc\.experiment) \S+/(?:demo|table1)\.yaml (.*)",
        r"\1 detectron_configs/experiment/demo.yaml \2 data=data/raw/pidray seeds=[0] "
        r"pretrainings.keys.overrides=[optim.steps=2] pretrainings.random_dictionary.overrides=[optim.steps=2] "
        r"protocols.short.overrides=[train.iterations=2]",
    ),
    (r"pretrainings\.paper\.", "pretrainings.keys."),
    (r"(--weights runs/paper_bn\.pth .*)", r"\1 model.backbone.norm=bn"),
    (r"(pipeline\.synthesize .*)", r"\1 --pairs 24 --per-shard 12 --width 96 --scale 3:5"),
    (r"segloc\.probe (.*)--train \d+ --test \d+", r"segloc.probe \1--train 12 --test 6"),
    (r"--bootstrap 1000", "--bootstrap 40"),
)
SMALL_PARAMS = {
    "simulate": {"scans": 144},
    "synthesize": {"pairs": 48, "per_shard": 24, "width": 96, "scale": "3:5"},
}
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
COMMANDS = ("python", "make", "dvc", "pip", "torchrun", "export", "sh ")
MARK = "<!-- not run: "


def blocks(text):
    """Kind and body of each fenced block that is not marked as not run."""
    previous, kind, body = "", None, []
    for line in text.splitlines():
        if line.startswith("```"):
            if kind is None:
                kind, body, marked = line[3:], [], previous.startswith(MARK)
            else:
                if not marked:
                    yield kind, "\n".join(body)
                kind = None
        elif kind is not None:
            body.append(line)
        previous = line


def commands(text):
    """The commands of a page, one a line, comments and continuations resolved."""
    for kind, body in blocks(text):
        if kind == "sh":
            joined = re.sub(r"\\\n\s*", "", body)
            yield from filter(None, (re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines()))


def smaller(command):
    for pattern, replacement in SMALLER:
        command = re.sub(pattern, replacement, command)
    return command


def test_comments_and_continuations_are_resolved():
    text = (
        "```sh\npython -m a \\\n    --b 1   # one\n\n. .venv/bin/activate\n```\n<!-- not run: x -->\n```sh\nno\n```\n"
    )
    assert list(commands(text)) == ["python -m a --b 1", ". .venv/bin/activate"]
    assert smaller(". .venv/bin/activate") == "true"


def test_every_block_of_commands_is_tagged():
    for page in PAGES:
        for kind, body in blocks((ROOT / page).read_text()):
            assert kind or page == "docs/results.md" or not body.startswith(COMMANDS), page


def run(command, workspace):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(workspace),
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


def set_params(workspace, *changes):
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for change in changes:
        for section, values in change.items():
            params[section] |= values
    path.write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A copy of the tracked files, with the data set that `make demo` makes and copies of it as users' data."""
    folder = tmp_path_factory.mktemp("docs") / "segloc"
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    run("git init -q && dvc config core.no_scm true --local", folder)
    sizes = {"pairs": 48, "per_shard": 24, "width": 96, "scale": "3:5"}
    named = yaml.safe_load((folder / "params.yaml").read_text())["data_sets"]
    set_params(folder, SMALL_PARAMS, {"data_sets": {name: about | sizes for name, about in named.items()}})
    run("dvc repro", folder)
    simulated, raw, scans = folder / "data" / "simulated", folder / "data" / "raw", folder / "scans"
    raw.mkdir()
    scans.mkdir()
    for name in ("pidray", "sixray"):
        (raw / name).symlink_to(simulated / name)
    pidray = simulated / "pidray"
    (scans / "clean").symlink_to(simulated / "sixray")
    (scans / "train").symlink_to(pidray / "train")
    (scans / "test").symlink_to(pidray / "easy")
    shutil.copy(pidray / "annotations" / "xray_train.json", scans / "train.json")
    shutil.copy(pidray / "annotations" / "xray_test_easy.json", scans / "test.json")
    for name in ("easy", "hard"):
        shutil.copy(pidray / "annotations" / f"xray_test_{name}.json", folder)
        (folder / f"{name}.results.json").write_text("[]")
    (folder / "theirs.json").write_text("[]")
    shutil.copy(next(iter((simulated / "sixray").rglob("*.jpg"))), folder / "scan.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, workspace):
    text = (workspace / page).read_text()
    found = list(commands(text))
    if not found:
        pytest.skip("has no commands")
    if page == "docs/guide_pidray.md":
        (block,) = [body for kind, body in blocks(text) if kind == "yaml"]
        set_params(workspace, yaml.safe_load(block), SMALL_PARAMS)
    for command in found:
        run(smaller(command), workspace)
