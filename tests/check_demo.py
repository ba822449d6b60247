"""Check of a finished ``make demo``: its pretraining learned. ``python -m tests.check_demo runs/demo/pretrain``."""

import sys
from pathlib import Path

import numpy as np

from segloc.runs import read_metrics, read_run


def main(run: Path) -> int:
    """Compare the last quarter of the run with chance; returns the exit code."""
    about, rows = read_run(run), read_metrics(run)
    last = rows[-len(rows) // 4 :]
    loss, accuracy, spread = (
        float(np.mean([row[name] for row in last])) for name in ("loss", "class_accuracy", "embedding_std/p4")
    )
    print(
        f"last {len(last)} of {len(rows)} measured steps: loss {loss:.2f} (chance {about['chance_loss']:.2f}), "
        f"class accuracy {accuracy:.3f} (chance {about['chance_class_accuracy']:.3f}), spread {spread:.2f}"
    )
    # The spread tells learning from embeddings that have all become one vector.
    learned = loss < 0.97 * about["chance_loss"] and accuracy > 2 * about["chance_class_accuracy"] and spread > 0.5
    return 0 if learned else 1


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
