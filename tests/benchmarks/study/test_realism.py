"""The comparison of simulated with real scans: statistics with known answers, splits by scan, classifiers."""

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the test of realism trains a small network")
pytest.importorskip("matplotlib", reason="its page has charts")

from benchmarks.study import real_or_simulated, realism, scan_statistics, simulator_page
from benchmarks.study.realism import Scan
from segloc.common.images import encode_jpeg, encode_png
from tests.pipeline.conftest import draw_bag

ORANGE = (220, 150, 60)


def bag(colour: tuple[int, int, int] = ORANGE) -> np.ndarray:
    """A white belt of 200 x 400 with a uniform bag of 100 x 200 in the middle."""
    scan = np.full((200, 400, 3), 255, np.uint8)
    scan[50:150, 100:300] = colour
    return scan


def noisy_bag(seed: int, noise: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scan = np.full((260, 410, 3), 255, np.float32)
    scan[20:240, 20:390] = np.array(ORANGE) + rng.normal(0, 25, 3)
    scan[20:240, 20:390] += rng.normal(0, noise, (220, 370, 1))
    return scan.clip(0, 255).astype(np.uint8)


def scans(count: int, noise: float, seed: int = 0) -> list[Scan]:
    """Measured scans of uniform bags with this noise."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        prepared = scan_statistics.prepare(noisy_bag(1000 * seed + number, noise), 400)
        statistics = scan_statistics.measure(prepared)
        assert statistics is not None
        found.append(Scan("negatives, white belt", statistics, real_or_simulated.patches(prepared, rng)))
    return found


def test_statistics_of_a_uniform_bag():
    statistics = scan_statistics.measure(bag())
    assert statistics is not None
    values = statistics.values
    assert values["aspect"] == 0.5
    assert values["region_share"] == pytest.approx(0.25, abs=0.02)
    assert values["matter_share"] == pytest.approx(1, abs=0.06)
    assert values["belt_level"] == 255
    assert values["belt_dirt"] == 0
    assert values["orange_share"] == 1
    assert values["green_share"] == values["blue_share"] == values["neutral_share"] == 0
    assert values["saturation_mean"] == pytest.approx(160 / 220, abs=1e-3)
    assert values["grey_mean"] == pytest.approx(0.299 * 220 + 0.587 * 150 + 0.114 * 60, abs=1)
    assert values["dark_share"] == values["light_share"] == 0
    assert values["grain"] < 0.5
    assert all(histogram.sum() == pytest.approx(1) for histogram in statistics.histograms.values())
    assert statistics.histograms["hue"][33 // 10] == 1  # orange of 33.75 degrees, bins of 10


@pytest.mark.parametrize(
    ("colour", "share"),
    [((60, 200, 70), "green_share"), ((50, 120, 220), "blue_share"), ((120, 120, 120), "neutral_share")],
)
def test_shares_of_colours(colour, share):
    statistics = scan_statistics.measure(bag(colour))
    assert statistics is not None
    assert statistics.values[share] == 1


def test_dark_and_light_matter():
    scan = bag((20, 20, 20))
    scan[50:100, 100:300] = (230, 230, 230)
    statistics = scan_statistics.measure(scan)
    assert statistics is not None
    assert statistics.values["dark_share"] == pytest.approx(0.5, abs=0.03)
    assert statistics.values["light_share"] == pytest.approx(0.5, abs=0.03)
    assert statistics.values["contrast"] == pytest.approx(105, abs=6)


def test_an_empty_belt_has_no_statistics():
    assert scan_statistics.measure(np.full((200, 300, 3), 255, np.uint8)) is None


def test_every_step_has_two_steep_columns():
    grey = np.zeros((40, 200), np.uint8)
    grey[:, 20:] = 100  # 50 levels a pixel by a central difference
    assert scan_statistics.edge_density(grey) == pytest.approx(2 / 200)
    assert scan_statistics.edge_density(np.asarray(grey // 6, np.uint8)) == 0  # 8 levels a pixel


@pytest.mark.parametrize("noise", [2.0, 6.0])
def test_grain_is_the_noise_on_a_slope(noise):
    rng = np.random.default_rng(0)
    slope = 80 + 0.3 * np.arange(300) + rng.normal(0, noise, (200, 300))
    grey = slope.round().astype(np.uint8)
    assert scan_statistics.grain(grey, np.ones(grey.shape, bool)) == pytest.approx(noise, rel=0.1)


def test_colour_grain_is_blind_to_grey_noise():
    rng = np.random.default_rng(0)
    scan, common = np.full((200, 300, 3), 120.0), rng.normal(0, 8, (200, 300, 1))
    everywhere = np.ones((200, 300), bool)
    grey = scan_statistics.red_less_blue((scan + common).round().astype(np.uint8))
    assert scan_statistics.grain(grey, everywhere) == 0
    colours = scan + rng.normal(
        0, 8, scan.shape
    )  # the difference of two has sqrt(2) times the noise, its half 1 / sqrt(2)
    found = scan_statistics.grain(scan_statistics.red_less_blue(colours.round().astype(np.uint8)), everywhere)
    assert found == pytest.approx(8 / np.sqrt(2), rel=0.1)


def test_texture_is_the_deviation_in_a_window():
    grey = np.full((90, 90), 100, np.uint8)
    grey[:, ::2] = 120  # 4 or 5 of 9 columns
    expected = np.sqrt(20 / 81) * 20
    assert scan_statistics.texture(grey, np.ones(grey.shape, bool)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("exponent", [0.0, -1.0, -2.5])
def test_the_spectrums_slope_is_that_of_synthetic_noise(exponent):
    rng = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256))
    frequency[0, 0] = np.inf if exponent else 1
    picture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((256, 256))) * frequency ** (exponent / 2))
    grey = cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX).round().astype(np.uint8)
    assert scan_statistics.spectrum_slope(grey) == pytest.approx(exponent, abs=0.15)


def test_preparation_hides_the_file_format():
    scan = draw_bag(np.random.default_rng(0), 500, 400)
    prepared = scan_statistics.prepare(scan, 400)
    assert prepared.shape == (320, 400, 3)
    again = scan_statistics.prepare(cv2.imdecode(np.frombuffer(encode_png(scan), np.uint8), 1)[..., ::-1], 400)
    assert np.array_equal(prepared, again)


def test_earth_movers_distance_is_that_of_the_sorted_samples():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, 50), rng.exponential(2, 50)
    assert scan_statistics.earth_movers_distance(a, b) == pytest.approx(np.abs(np.sort(a) - np.sort(b)).mean())
    assert scan_statistics.earth_movers_distance(a, np.repeat(a, 3)) == pytest.approx(0, abs=1e-12)
    assert scan_statistics.earth_movers_distance(np.array([0, np.nan]), np.full(3, 3.0)) == 3


@pytest.mark.parametrize("sizes", [(10, 30), (53, 170), (34, 34)])
def test_equal_distributions_are_at_the_distance_of_chance(sizes):
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        real, simulated = (rng.normal(size=size) for size in sizes)
        found = realism._distances(scan_statistics.earth_movers_distance, real, simulated, rng)
        ratios.append(float(found["distance"]) / float(found["real_halves"]))
    # The two random samples differ a little, halves of one less so.
    assert 0.95 < np.mean(ratios) < 1.25


def test_distance_of_histograms_goes_round_for_hue_only():
    hue = np.zeros((2, 36))
    hue[0, 0] = hue[1, 35] = 1
    assert scan_statistics.histogram_distance("hue", *hue) == pytest.approx(10)
    grey = np.zeros((2, 64))
    grey[0, 0] = grey[1, 63] = 1
    assert scan_statistics.histogram_distance("grey", *grey) == pytest.approx(63 * 4)


def test_every_fold_has_its_share_of_every_group():
    groups = ["a"] * 53 + ["b"] * 10 + ["c"] * 34
    fold = real_or_simulated.folds(groups, np.random.default_rng(0))
    for name in "abc":
        counts = np.bincount(fold[[group == name for group in groups]], minlength=5)
        assert np.ptp(counts) <= 1
    tested = np.concatenate([test for _, test in real_or_simulated.splits(fold)])
    assert sorted(tested) == list(range(97))
    assert all(not set(train) & set(test) for train, test in real_or_simulated.splits(fold))


def test_a_network_does_not_train_on_test_scans(monkeypatch):
    monkeypatch.setattr(real_or_simulated, "STEPS", 3)
    rng = np.random.default_rng(0)
    sets = [rng.integers(0, 256, (4, 64, 64, 3), np.uint8) for _ in range(6)]
    labels, train, test = np.array([0, 1, 0, 1, 0, 1]), np.arange(4), np.array([4, 5])

    def score(sets, labels):
        return real_or_simulated.patch_scores(sets, labels, train, test, seed=0)

    first, last = score(sets, labels)
    changed = score([*sets[:4], np.zeros_like(sets[4]), sets[5]], np.array([0, 1, 0, 1, 1, 0]))
    assert not np.array_equal(changed[0], first)
    assert np.array_equal(changed[1], last)
    assert not np.array_equal(score(sets, np.array([1, 1, 0, 0, 0, 1]))[1], last)


def test_patches_lie_in_the_bag():
    scan = np.full((300, 400, 3), 255, np.uint8)
    scan[100:300, 200:400] = ORANGE
    found = real_or_simulated.patches(scan, np.random.default_rng(0))
    assert found.shape == (real_or_simulated.PATCHES, 64, 64, 3)
    assert all((patch < 250).any(-1).mean() >= real_or_simulated.PATCH_MATTER for patch in found)
    assert len(np.unique(found.reshape(len(found), -1).mean(1))) > 1


def test_intervals_are_wilsons():
    assert real_or_simulated.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)  # textbook values
    assert real_or_simulated.wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    assert real_or_simulated.wilson(20, 20)[1] == pytest.approx(1)


def accuracy(one: list[Scan], other: list[Scan], view: str | None) -> float:
    labels = np.array([1] * len(one) + [0] * len(other))
    scored = realism.classifier_scores([*one, *other], labels, view, np.random.default_rng(0))
    return float(np.mean([(scores.mean() > 0) == label for scores, label in zip(scored, labels, strict=True)]))


def test_statistics_separate_different_sources():
    assert accuracy(scans(15, 2.0), scans(15, 9.0, seed=1), None) > 0.9


@pytest.mark.parametrize("view", realism.VIEWS)
def test_a_network_separates_different_sources(view, monkeypatch):
    monkeypatch.setattr(real_or_simulated, "STEPS", 60)
    blue = bag((90, 150, 220))
    blue[60:140:12, 100:300] = 0
    sets = [real_or_simulated.patches(scan, np.random.default_rng(n)) for n, scan in enumerate([bag(), blue] * 5)]
    seen = [real_or_simulated.as_seen(patches, view) for patches in sets]
    labels = np.array([0, 1] * 5)
    scores = real_or_simulated.patch_scores(seen, labels, np.arange(6), np.arange(6, 10), seed=0)
    assert [score.mean() > 0 for score in scores] == [False, True, False, True]


def test_statistics_are_at_chance_for_one_source():
    one = scans(60, 4.0)
    assert 0.25 < accuracy(one[::2], one[1::2], None) < 0.75


def test_a_network_is_at_chance_for_one_source(monkeypatch):
    monkeypatch.setattr(real_or_simulated, "STEPS", 20)
    one = scans(40, 4.0)
    assert 0.25 < accuracy(one[::2], one[1::2], "grey") < 0.75


def test_statistics_are_at_chance_for_real_scans(real_scans):
    rng = np.random.default_rng(0)
    found = realism.read_scans([real_scans / "sixray"], 400, 50, rng)
    right = [accuracy(found[::2], found[1::2], None)]
    for _ in range(4):
        order = rng.permutation(len(found))
        right.append(accuracy(*([found[i] for i in order[start::2]] for start in (0, 1)), None))
    assert 0.3 < np.mean(right) < 0.7


def write_layout(root: Path, noise: float) -> None:
    """Write eight scans into each folder of a simulation."""
    for number, place in enumerate(simulator_page.ROWS.values()):
        (root / place).mkdir(parents=True)
        for index in range(8):
            scan = noisy_bag(100 * number + index, noise)
            sixray = "JPEG" in place
            name = f"N{index:07d}.jpg" if sixray else f"xray_{index:05d}.png"
            (root / place / name).write_bytes(encode_jpeg(scan, 95) if sixray else encode_png(scan))


def test_one_command_writes_results_page_charts_and_sheet(tmp_path, monkeypatch):
    for name, noise in (("real", 3.0), ("simulated", 12.0)):
        write_layout(tmp_path / name, noise)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(simulator_page, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(simulator_page, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(real_or_simulated, "STEPS", 10)
    folders = ["--real", str(tmp_path / "real"), "--simulated", str(tmp_path / "simulated")]
    assert realism.main([*folders, "--width", "300"]) == 0
    page = (tmp_path / "docs" / "simulator.md").read_text()
    assert page == simulator_page.render_simulator(tmp_path / "results")
    for name in (simulator_page.SHEET, simulator_page.HISTOGRAM_CHART, simulator_page.STATISTICS_CHART):
        assert f"({name})" in page
        assert cv2.imread(str(tmp_path / "docs" / name)).std() > 0
    rows = simulator_page.read("classifiers", tmp_path / "results")
    all_scans = {(row["task"], row["inputs"]): row for row in rows if row["group"] == "all"}
    assert float(all_scans["real or simulated", "statistics"]["accuracy"]) > 0.9
    assert float(all_scans["real or simulated", "statistics"]["scans"]) == 80
    grain = next(r for r in simulator_page.read("statistics", tmp_path / "results") if r["statistic"] == "grain")
    assert float(grain["real_q50"]) < float(grain["simulated_q50"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--real", "nowhere"], "no such folder"),
        (["--real", "{sixray}", "--width", "400"], "give --width less than that, not 400"),
    ],
)
def test_bad_input_gives_one_sentence(sixray, capsys, arguments, reason):
    assert realism.main([argument.format(sixray=sixray) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error


def test_the_page_is_made_of_the_result_files():
    page = simulator_page.PAGE.read_text()
    written = "run python -m benchmarks.study.simulator_page"
    assert page == simulator_page.render_simulator(simulator_page.RESULTS), written
    assert all((simulator_page.DOCS / name).is_file() for name in (simulator_page.SHEET,
        simulator_page.HISTOGRAM_CHART, simulator_page.STATISTICS_CHART))  # fmt: skip
