"""The scanner's physics: Beer-Lambert, superposition, noise and colours."""

import numpy as np
import pytest

from pipeline.simulate.materials import INDEX, MATERIALS
from pipeline.simulate.outlines import rectangle
from pipeline.simulate.parts import Part, Placement, rounded, tube
from pipeline.simulate.raster import draw, empty_maps, silhouette
from pipeline.simulate.scanner import Scanner, attenuation, colours, detect, scan, transmission


def slab(material, thickness_cm, size=(40, 30)):
    maps = empty_maps(*size)
    maps[INDEX[material]] = thickness_cm
    return maps


def test_a_steel_slab_follows_beer_lambert():
    # Iron in NIST SRD 126: 1.958 and 0.5952 cm2/g at 50 and 80 keV, density 7.87 g/cm3.
    low, high = transmission(slab("steel", 0.1))
    np.testing.assert_allclose(low, np.exp(-1.958 * 7.87 * 0.1), rtol=1e-5)
    np.testing.assert_allclose(high, np.exp(-0.5952 * 7.87 * 0.1), rtol=1e-5)


def test_drawn_thickness_is_attenuated_exactly_inside_and_not_at_all_outside():
    maps = empty_maps(60, 40)
    draw(maps, [Part("aluminium", rectangle(1, 1, 4, 3), 0.7)], px_per_cm=10)
    low, _ = transmission(maps)
    np.testing.assert_allclose(low[12:28, 12:38], np.exp(-0.3681 * 2.70 * 0.7), rtol=1e-3)
    assert (low[:8] == 1).all()
    assert (low[:, 44:] == 1).all()


def test_stacked_objects_multiply_their_transmissions():
    outlines = {"glass": rectangle(0.5, 0.5, 3, 3), "steel": rectangle(1.25, 1.1, 5, 2.3)}
    single = []
    both = empty_maps(60, 40)
    for material, outline in outlines.items():
        part = Part(material, outline, 0.2, rounded(0.4))
        maps = empty_maps(60, 40)
        draw(maps, [part], 10)
        draw(both, [part], 10)
        single.append(transmission(maps))
    assert (single[0] * single[1] < single[0]).any()
    np.testing.assert_allclose(transmission(both), single[0] * single[1], rtol=1e-5)


def test_edges_are_anti_aliased():
    areas = []
    for shift in np.linspace(0, 0.1, 5):
        maps = empty_maps(60, 40)
        draw(maps, Placement(shift, shift / 2).parts([Part("steel", rectangle(1, 1, 4, 3), 1.0)]), 10)
        areas.append(maps.sum())
    np.testing.assert_allclose(areas, 30 * 20, rtol=0.03)
    assert set(np.unique(maps)) - {0, 1}


def test_a_tube_is_thickest_at_its_rim_and_two_walls_thick_in_the_middle():
    maps = empty_maps(60, 40)
    draw(maps, [Part("steel", rectangle(0.5, 1, 5.5, 3), 0.1, tube(1.0, 0.1))], 10)
    across = maps[INDEX["steel"], :, 30]
    assert across[20] == pytest.approx(0.2, rel=0.02)
    # At depth x below the edge the chord through the wall is sqrt(1 - (1 - x)^2) * 2 as long as it misses the bore.
    assert across[10] == pytest.approx(2 * np.sqrt(1 - 0.95**2), rel=0.3)
    assert across[10] > 2 * across[20]


def test_a_line_thinner_than_a_pixel_keeps_its_mass():
    maps = empty_maps(80, 40)
    draw(maps, [Part("copper", np.array([(1.0, 2.0), (7.0, 2.0)]), 1.0, line_cm=0.04)], 10)
    assert maps.sum() == pytest.approx(60 * 0.4, rel=0.15)


def test_noise_has_the_variance_of_the_photons_counted():
    photons, passed = 2000.0, transmission(slab("water", 3.0, (300, 300)))
    measured = np.exp(-detect(passed, Scanner(photons, blur_px=0.3), np.random.default_rng(1)))
    for energy, exact in zip(measured, passed, strict=True):
        assert energy.mean() == pytest.approx(exact.mean(), rel=1e-3)
        assert energy.std() == pytest.approx(np.sqrt(exact.mean() / photons), rel=0.02)


@pytest.mark.parametrize(
    ("material", "thickness_cm", "order"),
    [
        ("water", 5.0, "RGB"),  # orange: red over green over blue
        ("cloth", 15.0, "RGB"),
        ("plastic", 4.0, "RGB"),
        ("aluminium", 1.0, "GRB"),  # green first
        ("glass", 1.0, "GRB"),
        ("steel", 0.1, "BGR"),  # blue first
        ("copper", 0.06, "BGR"),
        ("battery", 1.0, "BGR"),
    ],
)
def test_material_decides_the_hue(material, thickness_cm, order):
    pixel = colours(attenuation(slab(material, thickness_cm)))[15, 20].astype(int)
    values = [pixel["RGB".index(channel)] for channel in order]
    assert values[0] > values[1] > values[2], pixel


def test_lead_is_nearly_black_and_an_empty_belt_is_the_belt():
    rng = np.random.default_rng(0)
    assert scan(slab("lead", 0.5), Scanner(), rng)[:20].max() < 25
    assert (colours(detect(transmission(empty_maps(40, 30)), Scanner(), rng)) == 255).all()
    grey = colours(detect(transmission(empty_maps(40, 30)), Scanner(palette="grey"), rng), "grey")
    assert 190 <= grey.min() <= grey.max() <= 198


def test_thicker_is_darker():
    for material in MATERIALS:
        brightness = [colours(attenuation(slab(material, cm)))[15, 20].mean() for cm in (0.01, 0.1, 0.5, 2.0)]
        assert brightness == sorted(brightness, reverse=True), material


def test_a_silhouette_is_the_union_of_its_parts():
    parts = [Part("steel", rectangle(1, 1, 2, 2), 0.1), Part("water", rectangle(1.5, 1.5, 3, 3), 0.1)]
    mask = silhouette(parts, 10, 50, 40)
    expected = np.zeros((40, 50), bool)
    expected[10:20, 10:20] = expected[15:30, 15:30] = True
    assert (mask.astype(bool) ^ expected).sum() <= 2
