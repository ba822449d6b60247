import json

import pytest

from segloc.common.errors import InputError
from segloc.reporting import probe_table


def written(folder, name, knn, linear, embedding=None, **changed):
    """Write the fields of a segloc.probe file that the table needs."""
    accuracy = {"p2": {"size": 4, "knn": 0.1, "linear": 0.2}, "all levels": {"size": 8, "knn": knn, "linear": linear}}
    if embedding:
        accuracy["embedding"] = {"size": 2, "knn": embedding[0], "linear": embedding[1]}
    report = {"iteration": 0, "shards": "d", "train": {"views": 40}, "test": {"views": 20}, "chance": 0.25}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**report, "accuracy": accuracy, **changed}))
    return path


@pytest.fixture
def files(tmp_path):
    """Three seeds of one start, one of another."""
    return [
        ("random", 0, written(tmp_path, "a", 0.4, 0.5, (0.3, 0.30))),
        ("random", 1, written(tmp_path, "b", 0.5, 0.5, (0.3, 0.35))),
        ("random", 2, written(tmp_path, "c", 0.6, 0.8, (0.6, 0.40))),
        ("paper", 0, written(tmp_path, "d", 0.75, 2 / 3, iteration=94000)),
    ]


def test_seeds_are_averaged(files):
    lines = probe_table.probes_markdown(probe_table.read_probes(files)).splitlines()
    columns = ["k-NN, all levels", "linear, all levels", "k-NN, embedding", "linear, embedding"]
    assert lines[0] == f"| start | steps | seeds | {' | '.join(columns)} | chance |"
    # By hand, mean and variance: 40, 50, 60: 50 and (100 + 0 + 100) / 2; 50, 50, 80: 60 and (100 + 100 + 400) / 2;
    # 30, 30, 60: 40 and 300 again; 30, 35, 40: 35 and (25 + 0 + 25) / 2.
    assert lines[2] == "| random | 0 | 3 | 50.0 ± 10.0 | 60.0 ± 17.3 | 40.0 ± 17.3 | 35.0 ± 5.0 | 25.0 |"
    assert lines[3] == "| paper | 94000 | 1 | 75.0 | 66.7 | – | – | 25.0 |"
    notes = "\n".join(lines[4:])
    assert "40 training views and 20 test views" in notes
    assert "sample standard deviation" in notes


def test_one_seed_without_an_embedding_has_no_spread_and_no_columns_for_it(files):
    lines = probe_table.probes_markdown(probe_table.read_probes(files[3:])).splitlines()
    assert "embedding" not in lines[0]
    assert lines[2] == "| paper | 94000 | 1 | 75.0 | 66.7 | 25.0 |"
    assert "±" not in "\n".join(lines)


def test_a_mean_is_of_all_seeds_or_there_is_none(files, tmp_path):
    files[1] = ("random", 1, written(tmp_path, "b", 0.5, 0.5))
    row = probe_table.probes_markdown(probe_table.read_probes(files)).splitlines()[2]
    assert row == "| random | 0 | 3 | 50.0 ± 10.0 | 60.0 ± 17.3 | – | – | 25.0 |"


def test_every_seed_and_kind_of_features_has_a_line(files):
    lines = probe_table.probes_csv(probe_table.read_probes(files)).splitlines()
    assert lines[0] == "start,seed,iteration,features,knn,linear,chance"
    assert lines[4:7] == [
        "random,1,0,p2,0.1,0.2,0.25", "random,1,0,all levels,0.5,0.5,0.25", "random,1,0,embedding,0.3,0.35,0.25",
    ]  # fmt: skip
    assert lines[-1] == "paper,0,94000,all levels,0.75,0.666667,0.25"
    assert len(lines) == 1 + 3 * 3 + 2


def test_the_steps_of_weights_may_be_unknown(tmp_path):
    probes = probe_table.read_probes([("given", 0, written(tmp_path, "a", 0.4, 0.5, iteration=None))])
    assert "| given | – | 1 |" in probe_table.probes_markdown(probes)
    assert "given,0,,all levels," in probe_table.probes_csv(probes)


def test_probes_of_other_shards_are_not_compared(files, tmp_path):
    files[3] = ("paper", 0, written(tmp_path, "d", 0.75, 0.5, shards="other"))
    with pytest.raises(InputError, match=r"d\.json: has other shards than .*a\.json"):
        probe_table.read_probes(files)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accuracy", None),
        ("accuracy", []),
        ("accuracy", {}),
        ("accuracy", {"all levels": {"knn": 0.5}}),
        ("accuracy", {"all levels": {"knn": 0.5, "linear": float("nan")}}),
        ("accuracy", {"all levels": {"knn": 0.5, "linear": "0.5"}}),
        ("accuracy", {"all levels": 3}),
        ("chance", 2),
        ("chance", True),
        ("iteration", "many"),
        ("train", 20),
        ("test", {"views": 2.5}),
    ],
)
def test_a_damaged_file_gives_one_sentence(tmp_path, key, value):
    path = written(tmp_path, "a", 0.4, 0.5)
    good = json.loads(path.read_text())
    for bad in ({**good, key: value}, {name: good[name] for name in good if name != key}):
        path.write_text(json.dumps(bad))
        with pytest.raises(InputError, match=r"not a file of segloc\.probe") as error:
            probe_table.read_probes([("random", 0, path)])
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"\xff\xfe"])
def test_a_file_that_is_not_a_report_gives_one_sentence(tmp_path, content):
    path = tmp_path / "probe.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a file of segloc\.probe"):
        probe_table.read_probes([("random", 0, path)])


def test_names_of_starts_are_text_in_markdown(tmp_path):
    text = probe_table.probes_markdown(probe_table.read_probes([("<script>|x", 0, written(tmp_path, "a", 0.4, 0.5))]))
    assert r"| \<script\>\|x | 0 | 1 |" in text
    assert "<script>" not in text
