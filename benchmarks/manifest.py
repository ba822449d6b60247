"""Time of the manifest of a million files, beside a plain `os.walk` with a `stat` of each file.

Each call runs in its own process, so its peak memory is measured separately. The script creates the files and removes
them at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import RESULTS, arguments, save

FIELDS = ("files", "folders", "what", "seconds", "microseconds_per_file", "ratio_to_walk", "peak_mib")
# The peer writes the same sorted lines, without further guarantees.
PLAIN_WALK = """
import os, sys
root, out = sys.argv[1:]
lines = []
for folder, _, names in os.walk(root):
    for name in names:
        path = os.path.join(folder, name)
        status = os.stat(path)
        lines.append(f"{status.st_size} {status.st_mtime_ns} {os.path.relpath(path, root)}\\n")
lines.sort()
open(out, "w").writelines(lines)
"""
PEAK = "\nimport resource, sys\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
IMPORTS = "import sys\nfrom pipeline import manifest\n"
MANIFEST = IMPORTS + "assert manifest.main(['--root', sys.argv[1], '--out', sys.argv[2]]) == 0"


def make(root: Path, files: int, folders: int) -> None:
    """Write `files` files of a few bytes in the numbered folders of a SIXray copy."""
    per_folder = -(-files // folders)
    for number in range(files):
        folder = root / str(number // per_folder)
        if number % per_folder == 0:
            folder.mkdir(parents=True)
        descriptor = os.open(f"{folder}/N{number + 1:07d}.jpg", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"%d" % number)
        os.close(descriptor)


def run(code: str, *arguments: Path) -> tuple[float, float]:
    """Run `code` in a new interpreter; return seconds, including its start, and peak memory in MiB."""
    start = time.perf_counter()
    command = [sys.executable, "-c", code + PEAK, *map(str, arguments)]
    done = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    return seconds, int(done.stderr.split()[-1]) / (1024 if sys.platform == "linux" else 1 << 20)


def main() -> None:
    """Measure, print, and write the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--files", type=int, default=1_000_000, metavar="N", help="default: %(default)s")
    options.add_argument("--folders", type=int, default=21, metavar="N", help="default: %(default)s, as in SIXray")
    options.add_argument("--work", type=Path, metavar="DIR", help="folder for the files (default: temporary)")
    options.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args = arguments(options)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        root, out = Path(work) / "scans", Path(work) / "scans.manifest"
        make(root, args.files, args.folders)
        run(PLAIN_WALK, root, Path(work) / "plain")  # loads the directories into the file-system cache
        runs = {
            "plain walk": run(PLAIN_WALK, root, Path(work) / "plain"),
            "manifest, first": run(MANIFEST, root, out),
            "manifest, nothing changed": run(MANIFEST, root, out),
            "of this, imports alone": run(IMPORTS),
        }
        plain = runs["plain walk"][0]
        for what, (seconds, mib) in runs.items():
            row = (round(seconds, 2), round(seconds / args.files * 1e6, 2), round(seconds / plain, 2), round(mib))
            rows.append(dict(zip(FIELDS, (args.files, args.folders, what, *row), strict=True)))
    save("manifest", rows, args.results)


if __name__ == "__main__":
    main()
