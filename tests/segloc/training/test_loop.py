"""The training loop, with Detectron2 and without."""

import json
import subprocess
import sys

import pytest

from segloc.training.loop import DETECTRON2, Hook, Trainer
from tests.imports import ROOT


class Counting(Trainer):
    """Records the calls."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.seen = []
        self.fail_at = fail_at

    def run_step(self):
        if self.iter == self.fail_at:
            raise ArithmeticError
        self.seen.append(f"step {self.iter}")
        self.metrics = {"loss": 10.0 - self.iter}


class Noting(Hook):
    def __init__(self, name=""):
        self.name = name

    def before_train(self):
        self.trainer.seen.append(f"{self.name}begin at {self.trainer.start_iter} of {self.trainer.max_iter}")

    def after_step(self):
        self.trainer.seen.append(f"{self.name}after {self.trainer.iter}")

    def after_train(self):
        self.trainer.seen.append(f"{self.name}end at {self.trainer.iter}")


def test_hooks_run_in_order_around_the_steps():
    trainer = Counting()
    trainer.register_hooks([Noting("a "), Noting("b ")])
    trainer.train(3, 5)
    assert trainer.seen == [
        *("a begin at 3 of 5", "b begin at 3 of 5"),
        *("step 3", "a after 3", "b after 3"),
        *("step 4", "a after 4", "b after 4"),
        *("a end at 5", "b end at 5"),
    ]


def test_hooks_end_when_a_step_fails():
    trainer = Counting(fail_at=1)
    trainer.register_hooks([Noting()])
    with pytest.raises(ArithmeticError):
        trainer.train(0, 3)
    assert trainer.seen == ["begin at 0 of 3", "step 0", "after 0", "end at 1"]


def test_a_hook_that_cannot_begin_is_what_the_caller_hears_of():
    class Broken(Hook):
        def before_train(self):
            raise OSError("the disk is full")

        def after_train(self):
            self.log.close()  # which was never opened

    trainer = Counting()
    trainer.register_hooks([Noting(), Broken(), Noting("never ")])
    with pytest.raises(OSError, match="the disk is full"):
        trainer.train(0, 3)
    assert trainer.seen == ["begin at 0 of 3", "end at 0"]


def test_a_run_of_no_steps_still_opens_and_closes():
    trainer = Counting()
    trainer.register_hooks([Noting()])
    trainer.train(2, 2)
    assert trainer.seen == ["begin at 2 of 2", "end at 2"]


def test_detectron2s_hooks_can_be_registered(tmp_path):
    pytest.importorskip("detectron2", reason="registers Detectron2's hooks")
    from detectron2.engine import TrainerBase, hooks
    from detectron2.utils.events import JSONWriter

    trainer = Counting()
    assert isinstance(trainer, TrainerBase)
    called = []
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.CallbackHook(after_step=lambda of: called.append(of.iter)),
            hooks.PeriodicWriter([JSONWriter(str(tmp_path / "m.json"))], period=2),
        ]
    )
    trainer.train(1, 6)
    assert called == [1, 2, 3, 4, 5]
    rows = [json.loads(line) for line in (tmp_path / "m.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 3, 5]
    # Detectron2 writes the median of the last steps.
    assert [row["loss"] for row in rows] == [9.0, 8.0, 7.0]
    assert DETECTRON2


def test_without_detectron2_the_loop_is_the_same():
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from tests.segloc.training import test_loop as t\n"
        "assert t.DETECTRON2 is None\n"
        "t.test_hooks_run_in_order_around_the_steps()\n"
        "t.test_hooks_end_when_a_step_fails()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
