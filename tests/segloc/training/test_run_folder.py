import json
import os

from segloc.training.run_folder import MetricsLog, read_metrics


def test_a_folder_that_is_not_utf8_gets_all_but_tensorboard(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"l\xe4ufe")
    for start in (0, 1):
        log = MetricsLog(folder, start)
        log.write(start, {"loss": 1.5})
        log.close()
    assert [(row["iteration"], row["loss"]) for row in read_metrics(folder)] == [(0, 1.5), (1, 1.5)]
    assert capsys.readouterr().out.count("no TensorBoard events are written") == 2
    assert [json.loads(line) for line in (folder / "metrics.json").read_text(encoding="utf-8").splitlines()]


def test_another_folder_gets_tensorboard(tmp_path):
    log = MetricsLog(tmp_path / "runs #1")
    log.write(0, {"loss": 1.5})
    log.close()
    assert list((tmp_path / "runs #1" / "tensorboard").glob("events.*"))
