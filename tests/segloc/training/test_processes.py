"""Several processes give the same result as one with the same global batch."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from segloc.common.errors import DivergedError, InputError
from segloc.common.stops import Stopped, held, name
from segloc.contrast import pretrainer
from segloc.contrast.pretrainer import Pretrainer
from segloc.contrast.run import pretrain
from segloc.data.stream import ShardFolder
from segloc.models.segloc import SegLoc
from segloc.settings.pretraining import HeadConfig, ModelConfig, load_config
from segloc.training import checkpoint, processes
from segloc.training.run_folder import read_metrics, read_run
from tests.imports import ROOT
from tests.segloc.test_pretrain import ONE_THREAD, TINY

# Eight pairs per step, in micro-batches of two.
EIGHT = [*TINY, "optim.batch=8", "optim.micro_batch=2", "optim.lr_per_256=0.01"]
ENVIRONMENT = os.environ | ONE_THREAD


def command(shards, out, *more, module=("-m", "segloc.pretrain"), settings=EIGHT):
    return [sys.executable, *module, "--shards", str(shards), "--out", str(out), *settings, *more]


def run(*arguments, **options):
    done = subprocess.run(
        command(*arguments, **options), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return arguments[1]


def losses(out):
    return {row["iteration"]: row["loss"] for row in read_metrics(out)}


def assert_alike(run, other):
    """In float32 the order of a sum makes a difference after some steps; in float64 it does not, see below."""
    assert list(losses(run)) == list(losses(other)) == list(range(6))
    assert list(losses(run).values()) == pytest.approx(list(losses(other).values()), rel=5e-3)
    queues = [checkpoint.load(out / checkpoint.LAST)["queues"] for out in (run, other)]
    assert torch.equal(queues[0]["labels"], queues[1]["labels"])


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    return run(shards, tmp_path_factory.mktemp("alone") / "run")


PARTS = ["model.norm=bn", "model.sda_norm=bn", "head.embedding_bn=true", "model.bn_images=4"]
# Settings of several processes, and of one process with the same result.
EQUALS = {
    "micro-batches": ([], []),
    "one large batch": (["optim.micro_batch=8"], ["optim.micro_batch=8"]),
    "batch norm in parts": ([*PARTS, "optim.micro_batch=4"], [*PARTS, "optim.micro_batch=8"]),
}


def train_in_double(shards, out, number, group):
    """Do six steps in float64 with each of `EQUALS`; the main process saves the results."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        for name, settings in EQUALS.items():
            config = load_config(None, [*EIGHT, *settings[number]])
            trainer = Pretrainer(config, ShardFolder.open(shards), Path(out), torch.device("cpu"), group)
            trainer.fill_queues()
            losses = []
            for trainer.iter in range(6):
                trainer.run_step()
                losses.append(trainer.metrics["loss"])
            trainer.close()
            parts = {part: getattr(trainer.model, part).state_dict() for part in ("query", "key")}
            if group.is_main:
                torch.save({"losses": losses, **parts, "queues": trainer.queues.state_dict()}, f"{out}/{number} {name}")
    torch.set_default_dtype(torch.float32)
    return 0


@pytest.fixture(scope="module")
def in_double(varied, tmp_path_factory):
    out = tmp_path_factory.mktemp("double")
    train_in_double(str(varied), str(out), 1, processes.ALONE)
    assert processes.launch(train_in_double, 2, str(varied), str(out), 0) == 0
    return out


@pytest.mark.parametrize("name", EQUALS)
def test_two_processes_equal_one_to_float64(name, in_double):
    two, one = (torch.load(in_double / f"{number} {name}") for number in (0, 1))
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-9)
    assert len(set(one["losses"])) == 6
    assert torch.equal(one["queues"]["labels"], two["queues"]["labels"])
    for part in ("query", "key", "queues"):
        for tensor, value in one[part].items():
            if ("running" in tensor) or tensor.endswith("num_batches_tracked"):
                continue  # statistics that training does not use; each process keeps its own
            torch.testing.assert_close(value, two[part][tensor], rtol=1e-6, atol=1e-9, msg=tensor)


def break_second(shards, out, group):
    """Pretrain where only the second process has a loss that is not finite; returns 1 if it is noticed."""
    if group.rank == 1:
        compare = pretrainer.info_nce

        def broken(*arguments):
            result = compare(*arguments)
            return dataclasses.replace(result, loss=result.loss * float("nan"))

        pretrainer.info_nce = broken
    try:
        pretrain(load_config(None, EIGHT), shards, Path(out), group)
    except DivergedError as error:
        Path(f"{out}-{group.rank}.txt").write_text(str(error))
    return 0


def test_a_loss_that_is_not_finite_in_one_process_stops_all(shards, tmp_path):
    assert processes.launch(break_second, 2, str(shards), str(tmp_path / "run")) == 0
    for rank in range(2):
        assert "step 0: the loss is nan" in (tmp_path / f"run-{rank}.txt").read_text()
    pairs = json.loads((tmp_path / "run" / "not_finite.json").read_text())["pairs"]
    assert len(set(pairs)) == 4  # the pairs of that process


def test_torchrun_equals_one_process(shards, alone, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "segloc.pretrain")
    assert_alike(run(shards, tmp_path / "run", module=torchrun), alone)


def interrupt(process, out, number, to_group):
    """Send a signal once two steps are done: to the command alone, or as a terminal does to all its processes."""
    deadline = time.monotonic() + 120
    while len(losses(out)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    (os.killpg if to_group else os.kill)(process.pid, number)
    return process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("number", "to_group"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGHUP, True)],
)
def test_a_run_stopped_in_two_processes_resumes_in_one(number, to_group, shards, alone, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(shards, out, "--processes", "2"), cwd=ROOT, env=ENVIRONMENT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    _, errors = interrupt(process, out, number, to_group)
    assert process.returncode == 128 + number
    said = f"python -m segloc.pretrain: stopped by {name(number)}; run the same command again to continue"
    assert errors.splitlines()[-1] == said
    assert errors.count("stopped by") == 1
    assert "Traceback" not in errors
    assert "leaked" not in errors
    assert 0 < checkpoint.load(out / checkpoint.LAST)["iteration"] < 6
    assert read_run(out)["processes"] == 2
    run(shards, out)
    assert_alike(out, alone)
    assert read_run(out)["processes"] == 1


def wait_for_a_stop(folder, group):
    """Note the process, then wait for a stop; returns 5 if none comes."""
    deadline = time.monotonic() + 60
    with held() as stop:
        Path(folder, f"{group.rank}.pid").write_text(str(os.getpid()))
        while time.monotonic() < deadline:
            if stop():
                Path(folder, f"{group.rank}.stopped").touch()
                return 0
            time.sleep(0.05)
    return 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_before_the_processes_are_there_is_not_lost(number, tmp_path):
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    with pytest.raises(Stopped) as caught:
        processes.launch(wait_for_a_stop, 2, str(tmp_path))
    assert caught.value.number == number
    assert {path.name for path in tmp_path.glob("*.stopped")} == {"0.stopped", "1.stopped"}


def test_processes_stop_when_the_launching_one_is_killed(tmp_path):
    code = (
        "from segloc.training import processes\n"
        "from tests.segloc.training.test_processes import wait_for_a_stop\n"
        f"processes.launch(wait_for_a_stop, 2, {str(tmp_path)!r})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while len(list(tmp_path.glob("*.stopped"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {path.name for path in tmp_path.glob("*.stopped")} == {"0.stopped", "1.stopped"}


def listening(group):
    """Addresses on which this process or another of its group listens, [local address in hexadecimal]."""
    group.gather(torch.zeros(1))
    mine = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in mine:
                found.append(fields[1].partition(":")[0])
    return found


def note_listening(folder, group):
    found = listening(group)
    Path(folder, f"{group.rank}").write_text("\n".join(found))
    launcher = Path(f"/proc/{os.getppid()}/fd")
    sockets = [os.readlink(path) for path in launcher.iterdir() if path.is_symlink()]
    tables = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    servers = [row[1] for row in tables if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    Path(folder, "launcher").write_text("\n".join(servers))
    group.gather(torch.zeros(1))
    return 0


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
def test_processes_of_one_machine_listen_on_the_loopback_only(tmp_path):
    code = (
        "from segloc.training import processes\n"
        "from tests.segloc.training.test_processes import note_listening\n"
        f"raise SystemExit(processes.launch(note_listening, 2, {str(tmp_path)!r}))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, check=True, timeout=180)
    for rank in range(2):
        addresses = (tmp_path / str(rank)).read_text().split()
        assert addresses, "it listens for the other process"
        assert set(addresses) <= {"0100007F", "00000000000000000000000001000000"}
    assert not (tmp_path / "launcher").read_text()


def fail(how, group):
    """End the second process while the first waits for it."""
    if group.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "input":
            raise InputError("no such shard")
        raise AttributeError("of the programmer")
    group.gather(torch.zeros(1))
    return 0


KILLED = "process 1 was ended by SIGKILL; run the same command again to continue"


@pytest.mark.parametrize(
    ("how", "code", "said"), [("killed", 1, KILLED), ("input", 2, "no such shard"), ("bug", 1, "of the programmer")]
)
def test_one_process_that_fails_ends_all_with_its_code(how, code, said, capfd):
    assert processes.launch(fail, 2, how) == code
    errors = capfd.readouterr().err
    assert said in errors
    assert "Connection" not in errors, "of the process that lost the other"
    assert not multiprocessing.active_children()


def lose(folder, group):
    """Note the error of the process whose peer is gone, and whether it is known as one."""
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        for _ in range(1000):
            group.gather(torch.zeros(1))
    except Exception as error:
        Path(folder, f"{processes.is_lost_peer(error)}").write_text(str(error))
    return 0


def test_only_errors_of_collective_calls_mean_a_lost_process(tmp_path):
    assert processes.launch(lose, 2, str(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["True"]
    assert processes.is_lost_peer(torch.distributed.DistBackendError("NCCL communicator was aborted"))
    for error in (
        RuntimeError("Too many open files: cannot make a socket"),
        RuntimeError("connection reset while a shard was read"),
        RuntimeError("bad file gloo.json"),
        OSError(32, "Broken pipe"),
        ValueError(next(tmp_path.iterdir()).read_text()),
    ):
        assert not processes.is_lost_peer(error)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("torchrun", [False, True])
def test_a_rank_that_is_killed_ends_the_run_with_one_sentence(torchrun, shards, tmp_path):
    out = tmp_path / "run"
    module = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "segloc.pretrain")
    more = (["optim.steps=2000"], {"module": module}) if torchrun else (["optim.steps=2000", "--processes", "2"], {})
    process = subprocess.Popen(
        command(shards, out, *more[0], **more[1]), cwd=ROOT, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(losses(out)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    # Of the children, the tracker of multiprocessing is the first; the ranks are started by a thread.
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = sorted(int(child) for task in tasks for child in task.read_text().split())
    killed = time.monotonic()
    os.kill(children[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - killed < 60
    ours = [line for line in errors.split("\n") if "run the same command again to continue" in line]
    assert len(ours) == 1, errors
    if not torchrun:  # which prints a traceback of its own
        assert "process 1 was ended by SIGKILL" in ours[0]
        assert "Traceback" not in errors
        assert "leaked" not in errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--processes", "0"], "--processes is 0"),
        (["--processes", "2", "optim.batch=6", "optim.micro_batch=2"], "optim.batch 6 cannot be shared by 2"),
        (["--processes", "2", "optim.batchs=6"], "optim.batch"),
        (
            ["--processes", "2", "optim.batch=2", "model.norm=bn", "model.sda_norm=bn", "model.bn_images=0"],
            "model.sda_norm=bn needs at least two images per part",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_gives_a_one_line_error(more, message, shards, tmp_path):
    done = subprocess.run(
        command(shards, tmp_path / "r", *more), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


MODEL = ModelConfig("resnet18", "bn", "bn", True, bn_images=0)
HEAD = HeadConfig(convs=1, conv_dim=32, fc_dim=32, dim=16)


def pretext():
    torch.manual_seed(0)
    return SegLoc(MODEL, HEAD)


def images_of(rank):
    """Images whose content depends on the rank."""
    rng = np.random.default_rng(rank)
    images = torch.from_numpy(rng.uniform(0, 255, (4, 3, 64, 64)).astype(np.float32))
    return images, torch.tensor([[4.0, 8, 40, 50]] * 4)


def save_keys(folder, group):
    torch.set_num_threads(1)
    shuffle, model = torch.Generator().manual_seed(5), pretext()
    keys = model.embed_keys(*images_of(group.rank), lambda *turn: model.key(*turn[:2]), 2, shuffle, group)
    torch.save(keys, f"{folder}/{group.rank}.pth")
    return 3 * group.rank


def test_keys_are_shuffled_over_processes(tmp_path):
    assert processes.launch(save_keys, 2, str(tmp_path)) == 3, "an exit code comes back"
    found = torch.cat([torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)], 1)
    images = torch.cat([images_of(rank)[0] for rank in (0, 1)])
    boxes = images_of(0)[1][:2]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    expected = torch.empty_like(found)
    with torch.no_grad():
        for part in order.split(2):  # each has its own statistics
            expected[:, part] = pretext().key(images[part], boxes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert sorted(order[:4].tolist()) != [0, 1, 2, 3]
    unshuffled = pretext().key(*images_of(0))
    assert not torch.allclose(found[:, :4], unshuffled, atol=1e-2)
