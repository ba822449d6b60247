import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from segloc import pretrain, report
from segloc.common import stops
from segloc.common.stops import SIGNALS, Stopped
from segloc.contrast import duration, pretrainer, run
from segloc.data.stream import ShardFolder
from segloc.models import roi_head
from segloc.models.initial_weights import read_backbone
from segloc.settings.pretraining import load_config
from segloc.training import checkpoint, run_folder
from segloc.training.processes import ALONE
from segloc.training.run_folder import SKIPPED, read_metrics, read_run, read_skips
from tests.segloc.conftest import write_shards

TINY = [
    "model.arch=resnet18", "model.norm=gn", "model.sda_norm=gn", "head.convs=1", "head.conv_dim=32",
    "head.fc_dim=32", "head.dim=16", "queue.size=20", "data.image_size=64", "data.threads=1", "optim.batch=4",
    "optim.micro_batch=4", "optim.steps=6", "optim.lr_per_256=0.5", "checkpoint_every=3", "log_every=1",
]  # fmt: skip


ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def tiny(*overrides):
    return load_config(None, [*TINY, *overrides])


def trainer_of(config, shards, out, fill=True, group=ALONE):
    trainer = pretrainer.Pretrainer(config, ShardFolder.open(str(shards)), out, torch.device("cpu"), group)
    if fill:
        trainer.fill_queues()
    return trainer


def losses(run):
    return {row["iteration"]: row["loss"] for row in read_metrics(run)}


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert pretrain.main(["--shards", str(shards), "--out", str(run), *TINY]) == 0
    return run


def test_run_folder_holds_what_is_needed(undisturbed):
    about = read_run(undisturbed)
    assert about["classes"] == ["Gun", "Knife", "Wrench"]
    assert about["chance_loss"] == pytest.approx(5 * np.log(21))
    assert load_config(undisturbed / "config.yaml", []) == tiny()
    assert sorted(losses(undisturbed)) == list(range(6))
    assert list((undisturbed / "tensorboard").glob("events*"))
    saved = checkpoint.load(undisturbed / checkpoint.BACKBONE)
    assert saved["kind"] == "backbone"
    assert saved["arch"] == "resnet18"


def test_what_a_run_decides_is_told_and_recorded(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(duration, "seconds_per_image", lambda trainer: 3600 * 24)
    out = tmp_path / "few"
    settings = [
        *TINY,
        "optim.steps=1",
        "model.norm=bn",
        "model.bn_images=2",
        "optim.micro_batch=0",
        "queue.init=random",
    ]
    assert pretrain.main(["--shards", str(shards), "--out", str(out), *settings]) == 0
    said = capsys.readouterr().out
    assert "device: cpu; precision: float32; pairs per forward pass: 2; processes: 1" in said
    assert "batch norm sees 2 images at a time" in said
    assert "on this CPU the run takes about 16 days; the recipe for laptops is " + duration.LAPTOP_RECIPE in said
    assert Path(duration.LAPTOP_RECIPE).is_file()
    about = read_run(out)
    assert (about["micro_batch"], about["precision"], about["batch_norm_images"]) == (2, "float32", 2)
    page = tmp_path / "report.html"
    assert report.main([str(out), "--out", str(page)]) == 0
    assert "few: batch norm sees 2 images at a time" in page.read_text()
    # It does not affect the result, so a resumed run may have another; one with statistics over it may not.
    assert pretrain.main(["--shards", str(shards), "--out", str(out), *settings, "optim.micro_batch=4"]) == 0
    assert "already finished" in capsys.readouterr().out
    whole = [*settings, "model.bn_images=0", "optim.micro_batch=4"]
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path / "whole"), *whole]) == 0
    assert (
        pretrain.main(["--shards", str(shards), "--out", str(tmp_path / "whole"), *whole, "optim.micro_batch=2"]) == 2
    )
    assert "optim.micro_batch: 4 -> 2" in capsys.readouterr().err


def test_the_time_of_a_forward_pass_leaves_the_trainer_as_it_is(shards, tmp_path):
    trainer = trainer_of(tiny("model.norm=bn", "model.bn_images=4"), shards, tmp_path, fill=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert 0 < duration.seconds_per_image(trainer) < 60
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(module.training for module in trainer.model.modules())
    assert not duration.warning(trainer, 0), "it takes seconds"


def test_classes_that_are_easy_to_tell_apart_are_learned(shards, tmp_path):
    """The loss alone is not enough: it also falls if all embeddings drift away from the older keys."""
    learning = [
        "model.norm=none", "model.sda_norm=ln", "model.bn_images=0", "head.embedding_bn=true", "head.dim=32",
        "optim.method=adamw", "optim.lr_per_256=0.0096", "optim.batch=8", "optim.micro_batch=8", "optim.steps=30",
        "optim.ema=0.9", "optim.temperature=1", "optim.warmup=5", "data.augment=none",
    ]  # fmt: skip
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path / "run"), *TINY, *learning]) == 0
    last = read_metrics(tmp_path / "run")[-10:]
    assert np.mean([row["loss"] for row in last]) < 0.9 * read_run(tmp_path / "run")["chance_loss"]
    assert np.mean([row["class_accuracy"] for row in last]) > 0.7
    assert np.mean([row["embedding_std/p4"] for row in last]) > 0.5


VARIANTS = {
    "group norm": [],
    "batch norm, AdamW, a single queue, micro-batches": [
        "model.norm=bn", "model.sda_norm=bn", "model.bn_images=0", "head.embedding_bn=true", "optim.method=adamw",
        "optim.lr_per_256=0.01", "queue.kind=single", "optim.micro_batch=2", "queue.size=22",
    ],
    "positives of the class, a narrow pyramid": ["queue.positives=class", "model.fpn_channels=64"],
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_equals_the_undisturbed_one_bit_for_bit(variant, shards, tmp_path, monkeypatch):
    """Stop after step 4, which has a metrics line but no checkpoint, because these come every 3 steps."""
    run_step = pretrainer.Pretrainer.run_step

    def killed_at_5(self):
        if self.iter == 5:
            raise KeyboardInterrupt
        run_step(self)

    arguments = ["--shards", str(shards), *TINY, *VARIANTS[variant], "--out"]
    undisturbed, resumed = str(tmp_path / "undisturbed"), str(tmp_path / "resumed")
    assert pretrain.main([*arguments, undisturbed]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(pretrainer.Pretrainer, "run_step", killed_at_5)
        assert pretrain.main([*arguments, resumed]) == 130
    assert sorted(losses(tmp_path / "resumed")) == [0, 1, 2, 3, 4]
    assert pretrain.main([*arguments, resumed]) == 0
    assert losses(tmp_path / "resumed") == losses(tmp_path / "undisturbed")
    one, other = (checkpoint.load(tmp_path / run / checkpoint.LAST) for run in ("undisturbed", "resumed"))
    for part in ("query", "key", "queues"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items()), part
    assert pretrain.main([*arguments, resumed]) == 0  # already finished


def test_detectron2_changes_nothing(shards, tmp_path):
    pytest.importorskip("detectron2", reason="compares runs with and without Detectron2")
    hide = "import sys; sys.modules['detectron2'] = None; "
    found = {}
    for name, first in (("own and Detectron2", ""), ("own", hide)):
        code = first + "import runpy; runpy.run_module('segloc.pretrain', run_name='__main__')"
        command = [sys.executable, "-c", code, "--shards", str(shards), "--out", str(tmp_path / name), *TINY]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=os.environ | ONE_THREAD)
        assert f"hooks: {name}" in done.stdout, done.stderr
        found[name] = losses(tmp_path / name)
    assert found["own and Detectron2"] == found["own"]
    assert len(found["own"]) == 6


def test_sigterm_while_the_queues_fill_ends_well(shards, tmp_path, monkeypatch, capsys):
    fill = pretrainer.Pretrainer._enqueue

    def interrupted(self, *arguments):
        fill(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    arguments = ["--shards", str(shards), "--out", str(tmp_path / "run"), *TINY]
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(pretrainer.Pretrainer, "_enqueue", interrupted)
        assert pretrain.main(arguments) == 143
    assert capsys.readouterr().err.endswith("stopped by SIGTERM; run the same command again to continue\n")
    assert not (tmp_path / "run" / checkpoint.LAST).exists()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert pretrain.main(arguments) == 0


def damaged_7(files, number):
    return files | {"query.jpg": b""} if number == 7 else files


def test_damaged_pairs_are_counted_over_a_stop(tmp_path, monkeypatch, capsys):
    folder = write_shards(tmp_path / "shards", spoil=damaged_7)
    save = run.save_checkpoint

    def stop(trainer, done):
        save(trainer, done)
        raise Stopped(signal.SIGTERM)

    arguments = ["--shards", str(folder), *TINY, "optim.steps=18", "checkpoint_every=12", "--out"]
    assert pretrain.main([*arguments, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(run, "save_checkpoint", stop)
        assert pretrain.main([*arguments, str(tmp_path / "parts")]) == 143
    assert pretrain.main([*arguments, str(tmp_path / "parts")]) == 0
    whole, parts = ([row["pairs_skipped"] for row in read_metrics(tmp_path / run)] for run in ("whole", "parts"))
    assert whole == parts
    assert whole[-1] == 4  # once while filling the queues, then once per epoch
    skips = [read_skips(tmp_path / name) for name in ("whole", "parts")]
    assert skips[0] == skips[1]
    assert [(part.what, part.skipped) for part in skips[0]] == [("drawn pairs", 4)]
    assert skips[0][0].total >= 18 * 4 + 4
    assert skips[0][0].total % 4 == 0
    (tmp_path / "whole" / SKIPPED).unlink()  # killed after the last step
    for share, code in (("0.01", 1), ("0.5", 0)):
        capsys.readouterr()
        assert pretrain.main([*arguments, str(tmp_path / "whole"), "--max-skipped", share]) == code  # finished
        said = f"4 of {skips[0][0].total} drawn pairs skipped: 4 damaged"
        assert (said in capsys.readouterr().err) == bool(code)


@pytest.mark.parametrize("number", SIGNALS)
def test_every_stop_saves_and_says_how_to_go_on(number, shards, tmp_path):
    command = [sys.executable, "-m", "segloc.pretrain", "--shards", str(shards), "--out", str(tmp_path / "run"), *TINY]
    command += ["optim.steps=100000", "checkpoint_every=100000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not losses(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    process.send_signal(number)  # as `timeout` does; it is the same stop
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, errors
    done = checkpoint.load(tmp_path / "run" / checkpoint.LAST)["iteration"]
    assert done == max(losses(tmp_path / "run")) + 1
    said = f"python -m segloc.pretrain: stopped by {stops.name(number)}; run the same command again to continue"
    assert errors.splitlines()[-1] == said
    assert errors.count("stopped by") == 1


IN_PARTS = [
    "model.norm=bn", "model.sda_norm=bn", "head.embedding_bn=true", "model.fpn_channels=64", "optim.batch=32",
    "data.image_size=32",
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [(["model.norm=gn"], (4, 1)), (["model.norm=none"], (4, 1)), (IN_PARTS, (32, 16, 8))],
)
def test_the_micro_batch_does_not_change_a_step(varied, tmp_path, monkeypatch, settings, sizes):
    """In float64 losses, weights, moving average and queues differ by rounding only."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    settings = [*settings, "optim.ema=0.9", "data.box_augment=insloc", "data.augment=paper"]
    ends, losses = [], []
    for micro in sizes:
        torch.set_default_dtype(torch.float64)
        try:
            trainer = trainer_of(tiny(*settings, f"optim.micro_batch={micro}"), varied, tmp_path)
            start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
            for trainer.iter in range(3):
                trainer.run_step()
            trainer.close()
        finally:
            torch.set_default_dtype(torch.float32)
        ends.append({**trainer.model.state_dict(), **trainer.queues.state_dict()})
        losses.append(trainer.metrics["loss"])
    one = ends[0]
    assert one["query.backbone.body.conv1.weight"].dtype == one["keys"].dtype == torch.float64
    assert losses == pytest.approx(losses[:1] * len(sizes), rel=1e-10)
    for name, value in one.items():
        if not (".head." in name and "running" in name):  # nothing uses these statistics
            assert all(torch.allclose(value, other[name], rtol=1e-8, atol=1e-10) for other in ends), name
    moved = [f"{network}.head.fcs.0.weight" for network in ("query", "key")]
    assert all((one[name] - start[name]).abs().max() > 1e-6 for name in moved)


def test_a_step_is_the_published_one(shards, tmp_path):
    """SGD with Nesterov momentum, weight decay and the scaled learning rate, on the step's own gradient."""
    trainer = trainer_of(tiny("optim.weight_decay=0.1", "optim.momentum=0.8", "optim.warmup=2"), shards, tmp_path)
    weight = trainer.model.query.head.fcs[0].weight
    momentum = torch.zeros_like(weight)
    for trainer.iter in range(3):
        before = weight.detach().clone()
        trainer.run_step()
        rate = 0.5 * 4 / 256 * (1 / 3, 2 / 3, 1)[trainer.iter]
        gradient = weight.grad + 0.1 * before
        momentum = 0.8 * momentum + gradient
        assert trainer.metrics["learning_rate"] == pytest.approx(rate)
        assert torch.allclose(weight, before - rate * (gradient + 0.8 * momentum), rtol=1e-4, atol=1e-7)
    trainer.close()


def test_settings_are_used(shards, tmp_path, monkeypatch):
    seen = {}

    def spy(module, name, pick):
        original = getattr(module, name)

        def wrapped(*arguments, **named):
            seen.setdefault(name, []).append(pick(*arguments, **named))
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, wrapped)

    spy(pretrainer, "photometric", lambda images, name, generators: (name, [g.initial_seed() for g in generators]))
    spy(pretrainer, "horizontal_flip", lambda images, boxes, probability, generators: probability)
    spy(pretrainer, "info_nce", lambda *arguments: arguments[4])
    spy(torch, "autocast", lambda device, dtype, enabled: (device, dtype, enabled))
    spy(roi_head, "roi_align", lambda *arguments: arguments[-1])
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append(module))
    settings = ["data.augment=paper", "data.flip=0.25", "optim.temperature=0.7", "optim.compile=true"]
    settings += ["optim.precision=bfloat16"]
    trainer = trainer_of(tiny(*settings, "head.sampling_ratio=3"), shards, tmp_path)
    seen["photometric"].clear()
    for trainer.iter in range(2):
        trainer.run_step()
    trainer.close()
    names, seeds = zip(*seen["photometric"], strict=True)
    assert set(names) == {"paper"}
    assert len({seed for each in seeds for seed in each}) == 16, "of four queries and four keys in two steps"
    assert set(seen["horizontal_flip"]) == {0.25}
    assert set(seen["info_nce"]) == {0.7}
    assert set(seen["autocast"]) == {("cpu", torch.bfloat16, True)}
    assert compiled == [trainer.model.query, trainer.model.key]
    assert set(seen["roi_align"]) == {3}


def test_flipped_images_have_flipped_boxes(shards, tmp_path):
    trainer = trainer_of(tiny("data.flip=1", "data.augment=none"), shards, tmp_path, fill=False)
    views = next(trainer.stream.batches()).query
    images, boxes = trainer._augmented(views.images, views.boxes, [torch.Generator() for _ in views.boxes])
    width = images.shape[-1]
    assert torch.equal(images, views.images.float().flip(-1))
    assert torch.equal(boxes[:, [0, 2]], width - views.boxes[:, [2, 0]])


def test_the_seed_decides_weights_and_order(shards, tmp_path):
    trainers = [trainer_of(tiny(f"seed={seed}"), shards, tmp_path, fill=False) for seed in (0, 0, 1)]
    weights = [trainer.model.query.backbone.body["conv1"].weight for trainer in trainers]
    pairs = [next(trainer.stream.batches()).pairs.tolist() for trainer in trainers]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert pairs[0] == pairs[1] != pairs[2]


def test_the_query_network_is_what_is_saved(shards, tmp_path):
    trainer = trainer_of(tiny("optim.ema=0.5", "optim.batch=4"), shards, tmp_path)
    trainer.iter = 0
    trainer.run_step()
    trainer.close()
    saved = checkpoint.load(run.save_backbone(trainer))
    query, key = trainer.model.query.backbone.state_dict(), trainer.model.key.backbone.state_dict()
    assert all(torch.equal(x, query[name]) for name, x in saved["backbone"].items())
    assert not all(torch.equal(x, key[name]) for name, x in saved["backbone"].items())


def test_queues_start_full_of_keys_of_the_untrained_network(shards, tmp_path):
    trainer = trainer_of(tiny("data.flip=0", "data.augment=none"), shards, tmp_path)
    assert trainer.queues.full
    batches = list(itertools.islice(trainer.stream.batches(epoch=-1), 6))  # all 24 pairs once
    expected = torch.cat([trainer.model.key(batch.key.images.float(), batch.key.boxes) for batch in batches], 1)
    labels = torch.cat([batch.labels for batch in batches])
    state = trainer.queues.state_dict()
    for level in range(5):
        for key, label in zip(state["keys"][level], state["labels"], strict=True):
            assert (expected[level][labels == label] @ key).max() > 0.9999


def test_random_dictionary_is_full_too(shards, tmp_path):
    trainer = trainer_of(tiny("queue.init=random"), shards, tmp_path)
    assert trainer.queues.full
    keys = trainer.queues.state_dict()["keys"]
    assert torch.allclose(keys.norm(dim=2), torch.ones(keys.shape[:2]), atol=1e-5)
    assert abs(float(keys[0].mean(0).norm())) < 0.5


def test_key_network_and_queues_advance_once_a_step(shards, tmp_path):
    trainer = trainer_of(tiny("optim.batch=4", "optim.micro_batch=2"), shards, tmp_path)
    calls = []
    update = trainer.model.update_keys
    trainer.model.update_keys = lambda momentum: (calls.append(momentum), update(momentum))
    before = trainer.queues.state_dict()["labels"].clone()
    trainer.iter = 0
    trainer.run_step()
    batches = trainer.stream.batches()
    labels = torch.cat([next(batches).labels for _ in range(2)])
    assert calls == [trainer.config.optim.ema]
    assert trainer.queues.state_dict()["labels"][-4:].tolist() == labels.tolist()
    assert len(before) >= 20
    trainer.close()


def test_a_single_queue_trains_on_one_class_which_class_queues_refuse(tmp_path, capsys):
    crops = write_shards(tmp_path / "crops", classes=1)
    settings = [*TINY, "optim.steps=2", "queue.size=30"]
    assert pretrain.main(["--shards", str(crops), "--out", str(tmp_path / "class"), *settings]) == 2
    assert (
        "all pairs are of one class; class queues need two classes, or set queue.kind=single" in capsys.readouterr().err
    )
    for init in ("keys", "random"):
        out = tmp_path / init
        settings += ["queue.kind=single", f"queue.init={init}"]
        assert pretrain.main(["--shards", str(crops), "--out", str(out), *settings]) == 0
        assert read_run(out)["chance_loss"] == pytest.approx(5 * np.log(31))
        assert [row["queue_fill"] for row in read_metrics(out)] == [30, 30]


def test_the_stored_keys_of_a_querys_class_can_be_positives(shards, tmp_path, monkeypatch):
    seen = []
    original = pretrainer.info_nce
    monkeypatch.setattr(pretrainer, "info_nce", lambda *given: seen.append(given) or original(*given))
    trainer = trainer_of(tiny("queue.positives=class", "optim.temperature=0.7"), shards, tmp_path)
    labels = next(trainer.stream.batches()).labels
    stored, negatives = trainer.queues.slot_labels(), trainer.queues.valid(labels)
    trainer.iter = 0
    trainer.run_step()
    trainer.close()
    assert len(seen) == 5  # one per level
    for query, key, _, valid, temperature, same_class in seen:
        assert query.shape == key.shape
        assert torch.equal(valid, negatives)
        assert torch.equal(same_class, stored == labels[:, None])
        assert same_class.any()
        assert not (valid & same_class).any()
        assert temperature == 0.7


def test_a_choice_of_positives_without_a_loss_is_refused(shards, tmp_path):
    trainer = trainer_of(tiny(), shards, tmp_path)
    object.__setattr__(trainer.config.queue, "positives", "other")  # bypasses the check of the settings
    trainer.iter = 0
    with pytest.raises(NotImplementedError, match=r"no loss for queue\.positives=other"):
        trainer.run_step()
    trainer.close()


def test_a_single_queue_holds_keys_of_the_querys_own_class(shards, tmp_path):
    losses = {}
    for kind in ("class", "single"):
        trainer = trainer_of(tiny(f"queue.kind={kind}"), shards, tmp_path)
        batch = next(trainer.stream.batches())
        label = batch.labels[:1]
        own = trainer.queues.slot_labels()[trainer.queues.valid(label)[0]] == label
        assert own.any() == (kind == "single")
        trainer.iter = 0
        trainer.run_step()
        losses[kind] = trainer.metrics["loss"]
        trainer.close()
    assert losses["single"] != losses["class"]


def without_other_classes(files, number):
    """Damage every pair that is not of class 0."""
    return files if json.loads(files["json"])["class_id"] == 0 else files | {"query.jpg": b"", "key.jpg": b""}


def test_queues_that_cannot_fill_give_a_one_line_error(tmp_path, capsys):
    folder = write_shards(tmp_path / "one", spoil=without_other_classes)
    assert pretrain.main(["--shards", str(folder), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert "all usable pairs are of class 'Gun'" in capsys.readouterr().err


CONTENTS = {
    "nothing": lambda state: state.clear(),
    "a backbone": lambda state: state.update(kind="backbone"),
    "no iteration": lambda state: state.pop("iteration"),
    "settings of another kind": lambda state: state.update(config="[1, 2]"),
    "a tensor missing": lambda state: state["query"].pop("backbone.body.conv1.weight"),
    "a queue of another version": lambda state: state["queues"].pop("arrivals"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_checkpoint_of_other_contents_gives_a_one_line_error(name, shards, undisturbed, tmp_path, capsys):
    state = checkpoint.load(undisturbed / checkpoint.LAST)
    CONTENTS[name](state)
    checkpoint.save(tmp_path / checkpoint.LAST, state)
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path), *TINY]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_resumes_without_its_initial_weights(shards, undisturbed, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    (start / checkpoint.BACKBONE).write_bytes((undisturbed / checkpoint.BACKBONE).read_bytes())
    command = ["--shards", str(shards), "--out", str(tmp_path / "run"), *TINY, f"model.init={start}"]
    assert pretrain.main(command) == 0
    (start / checkpoint.BACKBONE).unlink()
    assert pretrain.main(command) == 0


def test_augmented_boxes_reach_p5_of_the_queries_and_nothing_else(shards, tmp_path, monkeypatch):
    trainer = trainer_of(tiny("data.box_augment=insloc", "data.flip=0"), shards, tmp_path, fill=False)
    seen = []
    for network in (trainer.model.query, trainer.model.key):
        network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    batch = next(trainer.stream.batches())
    size = tuple(batch.query.images.shape[-2:])
    step = pretrainer.Step([batch], size, size)
    trainer.compare(step, 0, trainer.embed_keys(step, 0))
    key, query = seen
    assert [torch.equal(level, batch.query.boxes) for level in query] == [True, True, True, False, True]
    assert sorted(key.tolist()) == sorted(batch.key.boxes.tolist())


def test_frozen_pretrained_stages_do_not_change_in_training(shards, undisturbed, tmp_path):
    out = tmp_path / "run"
    settings = [f"model.init={undisturbed}", "model.frozen=2", "optim.steps=3"]
    assert pretrain.main(["--shards", str(shards), "--out", str(out), *TINY, *settings]) == 0
    old, new = (checkpoint.load(run / checkpoint.BACKBONE)["backbone"] for run in (undisturbed, out))
    for name, value in new.items():
        is_frozen = name.startswith(("body.conv1", "body.bn1", "body.layer1", "body.layer2"))
        if is_frozen or name.endswith("conv1.weight"):
            assert torch.equal(value, old[name]) == is_frozen, name


def test_box2fc_is_saved_under_the_detectors_names(shards, tmp_path):
    out = tmp_path / "run"
    assert pretrain.main(["--shards", str(shards), "--out", str(out), *TINY, "head.kind=box2fc", "optim.steps=1"]) == 0
    head = checkpoint.load(out / checkpoint.BACKBONE)["head"]
    assert {name for name in head if name.startswith("box.")} == {
        f"box.fc{n}.{x}" for n in (1, 2) for x in ("weight", "bias")
    }


def test_a_loss_that_is_not_finite_stops_and_names_the_pairs(shards, tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        result = info_nce(*args, **kwargs)
        return dataclasses.replace(result, loss=result.loss * float("nan"))

    info_nce = pretrainer.info_nce
    monkeypatch.setattr(pretrainer, "info_nce", broken)
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path / "run"), *TINY]) == 1
    assert "the loss is nan" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "run" / "not_finite.json").read_text())["pairs"]) == 4


def test_a_gradient_that_is_not_finite_stops_before_the_step(shards, tmp_path, monkeypatch, capsys):
    """Its loss may still be finite; neither the weights nor the last checkpoint may include it."""
    norm = torch.nn.utils.get_total_norm
    calls = []

    def third_is_infinite(gradients):
        calls.append(gradients)
        return norm(gradients) * (float("inf") if len(calls) == 3 else 1)

    arguments = ["--shards", str(shards), "--out", str(tmp_path / "run"), *TINY, "checkpoint_every=1"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "get_total_norm", third_is_infinite)
        assert pretrain.main(arguments) == 1
    assert "step 2: the loss is" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "not_finite.json").read_text())["iteration"] == 2
    assert checkpoint.load(tmp_path / "run" / checkpoint.LAST)["iteration"] == 2
    assert pretrain.main(arguments) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.lr=1"], "did you mean 'optim.lr_per_256'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such recipe"),
        (["optim.batch=3", "optim.micro_batch=2"], "not a multiple of micro_batch"),
        (["model.arch=resnet19"], "not one of resnet18"),
        (["optim.steps=0", "optim.batch=64", "optim.micro_batch=64", "optim.epochs=1"], "do not fill one batch"),
        (["oops"], "not key=value"),
        (["head.embedding_bn=true", "model.bn_images=1"], "head.embedding_bn=true needs at least two images per part"),
        (
            ["head.embedding_bn=true", "model.bn_images=3", "optim.batch=7", "optim.micro_batch=7"],
            "optim.micro_batch 7 is not a multiple of model.bn_images 3",
        ),
        (["head.conv_dim=40"], "needs a head.conv_dim that is a multiple of 32"),
        (["seed=99999999999999999999"], "seed is 99999999999999999999"),
        (["optim.temperature=.inf"], "optim.temperature is inf"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(shards, tmp_path, capsys, arguments, message):
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path), *TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_other_settings_or_shards_do_not_resume(shards, undisturbed, tmp_path, capsys):
    run = tmp_path / "run"
    os.symlink(undisturbed, run)
    assert pretrain.main(["--shards", str(shards), "--out", str(run), *TINY, "optim.ema=0.5"]) == 2
    assert "holds a run with other settings (optim.ema: 0.999 -> 0.5); choose another --out" in capsys.readouterr().err
    other = write_shards(tmp_path / "other", seed=5)
    assert pretrain.main(["--shards", str(other), "--out", str(run), *TINY]) == 2
    assert re.search(r"other settings \(shards: \w+\.\.\. -> \w+\.\.\.\)", capsys.readouterr().err)
    for name in (run_folder.CONFIG, run_folder.RUN):  # then the checkpoint tells
        (undisturbed / name).rename(tmp_path / name)
    assert pretrain.main(["--shards", str(shards), "--out", str(run), *TINY, "optim.ema=0.5"]) == 2
    assert "another optim.ema (0.999, not 0.5)" in capsys.readouterr().err
    assert pretrain.main(["--shards", str(other), "--out", str(run), *TINY]) == 2
    assert "its run used other shards" in capsys.readouterr().err
    for name in (run_folder.CONFIG, run_folder.RUN):
        (tmp_path / name).rename(undisturbed / name)


def test_a_run_before_its_first_checkpoint_belongs_to_its_settings(shards, tmp_path, monkeypatch, capsys):
    def stopped(*arguments):
        raise Stopped(signal.SIGTERM)

    arguments = ["--shards", str(shards), "--out", str(tmp_path / "run"), *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(pretrainer.Pretrainer, "fill_queues", stopped)
        assert pretrain.main([*arguments, "seed=1"]) == 143
    assert not (tmp_path / "run" / checkpoint.LAST).exists()
    assert pretrain.main([*arguments, "seed=2", "log_every=3"]) == 2
    assert "holds a run with other settings (seed: 1 -> 2); choose another --out" in capsys.readouterr().err


def test_only_one_process_trains_in_a_folder(shards, tmp_path, capsys):
    with run_folder.owned(tmp_path / "run"):
        assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path / "run"), *TINY]) == 2
    said = rf"run: another process trains in this folder \(process {os.getpid()} on \S+\); wait until it ends\n$"
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()  # neither process wrote into it


def test_a_run_from_before_a_setting_existed_resumes(shards, undisturbed, tmp_path):
    state = checkpoint.load(undisturbed / checkpoint.LAST)
    settings = yaml.safe_load(state["config"])
    del settings["model"]["init"], settings["data"]["box_augment"]
    checkpoint.save(tmp_path / checkpoint.LAST, state | {"config": yaml.safe_dump(settings)})
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path), *TINY]) == 0


def test_hostile_checkpoint_is_refused(shards, tmp_path, capsys):
    class Hostile:
        def __reduce__(self):
            return os.system, ("touch hostile",)

    torch.save({"format_version": 1, "x": Hostile()}, tmp_path / checkpoint.LAST)
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path), *TINY]) == 2
    assert "not a checkpoint that can be loaded safely" in capsys.readouterr().err
    assert not os.path.exists("hostile")


def test_a_run_of_an_earlier_version_is_not_resumed_but_its_weights_load(undisturbed, shards, tmp_path, capsys):
    out = tmp_path / "old"
    shutil.copytree(undisturbed, out)
    for name in (checkpoint.LAST, checkpoint.BACKBONE):
        torch.save({**torch.load(out / name, weights_only=True), "format_version": 1}, out / name)
    assert pretrain.main(["--shards", str(shards), "--out", str(out), *TINY]) == 2
    assert "its run is of an earlier version and cannot be resumed" in capsys.readouterr().err
    assert read_backbone(out).settings["arch"] == "resnet18"


def test_backbones_of_chosen_epochs_are_kept(shards, tmp_path, capsys):
    """24 pairs in batches of 4: an epoch ends every 6 steps."""
    settings = ["--shards", str(shards), *TINY, "optim.steps=13"]
    out = tmp_path / "kept"
    assert pretrain.main([*settings, "--out", str(out), "keep_epochs=[1,2]"]) == 0
    short = tmp_path / "short"
    assert pretrain.main([*settings, "--out", str(short), "optim.steps=13", "keep_epochs=[]"]) == 0
    assert sorted(path.name for path in out.glob("backbone*.pth")) == [
        "backbone-epoch-001.pth", "backbone-epoch-002.pth", "backbone.pth"
    ]  # fmt: skip
    kept = [read_backbone(out / f"backbone-epoch-{epoch:03d}.pth") for epoch in (1, 2)]
    assert [checkpoint.load(out / f"backbone-epoch-{epoch:03d}.pth")["iteration"] for epoch in (1, 2)] == [6, 12]
    last = read_backbone(short)
    assert all(torch.equal(read_backbone(out).tensors[name], value) for name, value in last.tensors.items())
    assert not all(torch.equal(kept[0].tensors[name], value) for name, value in kept[1].tensors.items())
    assert "13 steps of 4 pairs (optim.steps; optim.epochs is not used); chance loss" in capsys.readouterr().out
    assert pretrain.main([*settings, "--out", str(tmp_path / "late"), "keep_epochs=[3]"]) == 2
    assert "keep_epochs: epoch 3 ends after 18 steps, but the run has 13" in capsys.readouterr().err


def test_epochs_that_end_at_the_same_step_are_all_kept():
    """5 pairs in batches of 8."""
    config = load_config(None, ["optim.batch=8", "keep_epochs=[2,3,4]"])
    assert run.steps_of_epochs(config, 5, 9) == {1: [2, 3], 2: [4]}
    saved = []
    keeper = run.EpochKeeper({1: [2, 3], 2: [4]})
    keeper.trainer = SimpleNamespace(iter=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "save_backbone", lambda trainer, name, done: saved.append((name, done)))
        keeper.after_step()
    assert saved == [("backbone-epoch-002.pth", 1), ("backbone-epoch-003.pth", 1)]
