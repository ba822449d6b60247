"""The scanner's physics: Beer-Lambert, superposition, noise and colours."""

import numpy as np
import pytest

from pipeline.simulate.energies import atomic_number_image, effective_atomic_number, raw_images
from pipeline.simulate.items import CLASSES, make_item
from pipeline.simulate.materials import INDEX, MATERIALS
from pipeline.simulate.outlines import rectangle
from pipeline.simulate.palette import PALETTES, RATIO_STOPS
from pipeline.simulate.parts import Part, Placement, rounded, tube
from pipeline.simulate.pose import tilt
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
    # At depth x below the edge, a chord that misses the bore is 2 * sqrt(1 - (1 - x)^2) long.
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


@pytest.mark.parametrize(("palette", "level"), [("white", 53), ("pale", 52), ("grey", 35)])
def test_opaque_things_are_dark_blue_for_any_material(palette, level):
    """Real machines of these types show less than 1 % of darker pixels."""
    rng = np.random.default_rng(0)
    for material, thickness_cm in (("lead", 0.5), ("steel", 5.0), ("water", 60.0)):
        pixels = scan(slab(material, thickness_cm), Scanner(palette=palette), rng).picture[:20].reshape(-1, 3)
        red, green, blue = pixels.mean(axis=0)
        assert red < green < blue, material
        assert 0.299 * red + 0.587 * green + 0.114 * blue == pytest.approx(level, abs=4)


def test_an_empty_belt_has_the_belts_colour():
    rng = np.random.default_rng(0)
    assert (colours(detect(transmission(empty_maps(40, 30)), Scanner(), rng)) == 255).all()
    grey = colours(detect(transmission(empty_maps(40, 30)), Scanner(palette="grey"), rng), "grey")
    assert 190 <= grey.min() <= grey.max() <= 198


@pytest.mark.parametrize("palette", PALETTES)
def test_thicker_is_darker(palette):
    for material in MATERIALS:
        thicknesses_cm = (0.01, 0.1, 0.3, 0.5, 1, 2, 5, 12, 40)
        brightness = [colours(attenuation(slab(material, cm)), palette)[15, 20].mean() for cm in thicknesses_cm]
        assert brightness == sorted(brightness, reverse=True), material


def test_a_silhouette_is_the_union_of_its_parts():
    parts = [Part("steel", rectangle(1, 1, 2, 2), 0.1), Part("water", rectangle(1.5, 1.5, 3, 3), 0.1)]
    mask = silhouette(parts, 10, 50, 40)
    expected = np.zeros((40, 50), bool)
    expected[10:20, 10:20] = expected[15:30, 15:30] = True
    assert (mask.astype(bool) ^ expected).sum() <= 2


def test_rows_share_the_error_of_their_detector_element():
    passed = np.full((2, 200, 400), 0.5, np.float32)
    measured = np.exp(-detect(passed, Scanner(photons=1e9, line_error=0.01), np.random.default_rng(2)))
    assert np.abs(measured.std(axis=2)).max() < 1e-3
    rows = measured.mean(axis=2) / 0.5
    # Except for the few drifted ones, the gains have the given standard deviation, independently per energy.
    assert np.median(np.abs(rows - 1)) == pytest.approx(0.6745 * 0.01, rel=0.2)
    assert abs(np.corrcoef(rows)[0, 1]) < 0.9


# Mayneord's effective atomic numbers: the mean of Z^2.94 over electrons, to the power 1/2.94. Elements have their Z.
@pytest.mark.parametrize(
    ("material", "number"),
    [
        ("plastic", 5.44),
        ("water", 7.42),
        ("paper", 6.95),
        ("pvc", 14.15),
        ("aluminium", 13),
        ("steel", 26),
        ("copper", 29),
    ],
)
def test_both_attenuations_give_the_effective_atomic_number_at_any_thickness(material, number):
    for thickness_cm in (0.02, 0.5):
        low, high = -np.log(transmission(slab(material, thickness_cm)).astype(float))
        np.testing.assert_allclose(effective_atomic_number(low / high), number, atol=0.6)


def test_ratios_outside_the_formula_give_zero_or_infinity():
    none, endless = effective_atomic_number(np.array([1.0, 4.2]))
    assert none == 0
    assert endless == np.inf


def test_hues_change_at_the_atomic_numbers_in_the_docs():
    np.testing.assert_allclose(effective_atomic_number(np.array(RATIO_STOPS)), [8.0, 10.7, 14.3, 17.4], atol=0.05)


def atomic_number_of(material, thickness_cm):
    """Value of a wide slab in the image of a machine without noise."""
    measured = detect(transmission(slab(material, thickness_cm)), Scanner(photons=1e12), np.random.default_rng(0))
    image = atomic_number_image(measured)
    assert image.dtype == np.uint16
    return np.median(image)


@pytest.mark.parametrize("thickness_cm", [0.2, 1.0])
def test_images_of_the_atomic_number_identify_the_material(thickness_cm):
    assert atomic_number_of("aluminium", thickness_cm) == pytest.approx(13_000, abs=10)
    assert atomic_number_of("water", thickness_cm) == pytest.approx(7_420, abs=600)


@pytest.mark.parametrize(("material", "thickness_cm"), [("lead", 0.2), ("lead", 0.5), ("steel", 2.0)])
def test_opaque_things_differ_from_an_empty_belt(material, thickness_cm):
    assert atomic_number_of(material, thickness_cm) == 65535
    assert atomic_number_of(material, 0) == 0


def test_images_of_the_atomic_number_average_noise_like_the_hues():
    attenuation = np.full((2, 30, 30), 1.0, np.float32)
    attenuation[0] *= 1.5
    attenuation[:, 9, 9] = 0, 1.0  # a dark element of the low energy
    image = atomic_number_image(attenuation).astype(int)
    around = np.zeros((30, 30), bool)
    around[8:11, 8:11] = True
    assert len(np.unique(image[~around])) == 1
    assert (image[around] > 0).all()
    assert (image[around] < image[0, 0]).all()


def test_the_belt_is_empty_by_both_energies_over_some_pixels():
    attenuation = np.zeros((2, 40, 40), np.float32)
    attenuation[0, :, 20:] = 0.04  # a mean of 0.02, which is too low to be shown
    assert not atomic_number_image(attenuation).any()
    attenuation[0, :, 20:] = 0.06
    image = atomic_number_image(attenuation)
    assert image[:, 24:].all()
    assert not image[:, :20].any()


def test_raw_images_hold_transmissions():
    attenuation = np.array([[[0.0, 1.0]], [[-0.05, 8.0]]], np.float32)
    values = raw_images(attenuation)
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, [[[50000, round(50000 / np.e)]], [[52564, 17]]])
    assert raw_images(np.full((2, 1, 1), -1.0)).max() == 65535


def mass(parts, px_per_cm=20.0, size=(1000, 1000)):
    maps = empty_maps(*size)
    draw(maps, Placement(25, 25).parts(parts), px_per_cm)
    return maps.sum(axis=(1, 2))


@pytest.mark.parametrize("name", CLASSES)
def test_tilting_an_item_keeps_the_mass_of_each_of_its_materials(name):
    for brand in range(3):
        flat = make_item(name, brand, np.random.default_rng(brand), 60.0)
        for angle, towards in ((10, 30), (30, 0), (30, 120), (65, 60)):
            np.testing.assert_allclose(mass(tilt(flat, angle, towards)), mass(flat), rtol=0.04 if angle < 50 else 0.08)
            np.testing.assert_allclose(mass(tilt(flat, angle, towards)).sum(), mass(flat).sum(), rtol=0.04)


def test_no_tilt_changes_nothing():
    flat = make_item("Gun", 0, np.random.default_rng(0), 60.0)
    assert tilt(flat, 0) == flat
    for before, after in zip(flat, tilt(flat, 1e-6, 40), strict=True):
        np.testing.assert_allclose(after.outline, before.outline, atol=1e-6)
        assert after.thickness_cm == pytest.approx(before.thickness_cm)


def test_the_shadow_of_a_tilted_elliptic_rod_is_that_of_the_rod_turned():
    width, thickness, angle = 4.0, 1.5, np.radians(50)
    rod = [Part("steel", rectangle(-width / 2, -12, width / 2, 12), thickness, rounded(width / 2))]
    maps = empty_maps(400, 1000)
    draw(maps, Placement(5, 12.5).parts(tilt(rod, 50, 0)), 40)
    across = maps[INDEX["steel"], 500]
    # Chords of the ellipse x^2/a^2 + z^2/b^2 = 1 along the direction (sin, cos), at distance d from its centre.
    a, b = width / 2, thickness / 2
    reach = a**2 * np.cos(angle) ** 2 + b**2 * np.sin(angle) ** 2
    distance = (np.arange(400) + 0.5) / 40 - 5
    chords = 2 * a * b * np.sqrt(np.maximum(reach - distance**2, 0)) / reach
    inside = np.abs(distance) < 0.9 * np.sqrt(reach)
    np.testing.assert_allclose(across[inside], chords[inside], rtol=0.04)
    assert across[np.abs(distance) > np.sqrt(reach) + 0.05].max() == 0


@pytest.mark.parametrize(("shape", "length", "depth"), [("sheet", 0.5, 0.0), ("ball", 1.0, 4.0), ("rod", 1.0, 0.0)])
def test_sheets_get_narrower_balls_do_not_and_nothing_changes_across_the_tilt(shape, length, depth):
    outline = rectangle(-2, -2, 2, 2)
    towards = 90 if shape == "rod" else 0
    if shape == "rod":  # along y, tilted towards y: its width along x stays
        outline = rectangle(-2, -9, 2, 9)
    (part,) = tilt([Part("steel", outline, max(depth, 0.01))], 60, towards)
    assert np.ptp(part.outline[:, 0]) == pytest.approx(4 * length, rel=1e-3)


def test_parts_of_a_tilted_thing_move_together_and_its_mask_with_it():
    bar = [Part("steel", rectangle(x - 1, -1, x + 1, 1), 0.1) for x in (-6, 6)]
    tilted = tilt(bar, 60)
    centres = [part.outline.mean(axis=0) for part in tilted]
    np.testing.assert_allclose(centres, [(-3, 0), (3, 0)], atol=1e-9)
    masks = [silhouette(Placement(10, 5).parts(parts), 20, 400, 200) for parts in (bar, tilted)]
    assert masks[1].sum() == pytest.approx(0.5 * masks[0].sum(), rel=0.03)
    columns = np.flatnonzero(masks[1].any(axis=0))
    assert columns.min() == pytest.approx(200 - 3.5 * 20, abs=1)
    assert columns.max() + 1 == pytest.approx(200 + 3.5 * 20, abs=1)
