"""Check of a finished ``make demo``: its pretraining learned. ``python -m tests.check_demo runs/demo/pretrain``."""

import sys
from pathlib import Path

from segloc.training.run_folder import closing, read_metrics, read_run


def main(run: Path) -> int:
    """Compare the last quarter of the run with chance; returns the exit code."""
    about, metrics = read_run(run), read_metrics(run)
    end, begin = closing(metrics), closing(metrics[: len(metrics) // 4])
    loss, accuracy, spread = end["loss"], end["class_accuracy"], end["embedding_std/p4"]
    print(
        f"last quarter: loss {loss:.2f} (chance {about['chance_loss']:.2f}), class accuracy {accuracy:.3f} "
        f"(chance {about['chance_class_accuracy']:.3f}, at first {begin['class_accuracy']:.3f}), spread {spread:.2f}"
    )
    # The spread tells learning from embeddings that have all become one vector.
    learned = loss < 0.95 * about["chance_loss"] and accuracy > 2.5 * about["chance_class_accuracy"] and spread > 0.5
    return 0 if learned and accuracy > begin["class_accuracy"] else 1


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
