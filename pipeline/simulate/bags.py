"""Empty bags and trays: shells with thin bright rims, frames, rails, wheels, zips and straps.

Each function draws the shape of a bag from a generator. The bag stands upright around the origin, in cm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from pipeline.simulate.outlines import Outline, band, ellipse, rectangle, resample, rounded_rectangle, smooth, wander
from pipeline.simulate.parts import Part, Placement, rim, rounded, tube, wire

Generator = np.random.Generator

# Probability that the shell of a bag is PVC or coated with PVC.
COATED = 0.55


@dataclasses.dataclass(frozen=True)
class Bag:
    """An empty bag or tray.

    Attributes:
        parts: parts of the bag or tray.
        size_cm: (width, height) of the space for contents, centred on the origin.
        lined: whether cloth fills it; a tray holds things without cloth.
    """

    parts: list[Part]
    size_cm: tuple[float, float]
    lined: bool = True


def _soft(rng: Generator, outline: Outline, jitter: float) -> Outline:
    """Make the outline uneven like soft fabric, but still closed and smooth."""
    outline = resample(outline, 4.0)
    return smooth(outline + rng.normal(0, jitter, outline.shape), 2)


def _walls(rng: Generator, outline: Outline, material: str, wall: float, depth: float) -> list[Part]:
    """A shell seen edge-on at its outline, with the faint inner rims of its panels."""
    if material == "plastic" and rng.random() < COATED:
        material, wall = "pvc", 0.4 * wall
    parts = [Part(material, outline, wall, tube(depth, wall))]
    for share in rng.uniform(0.88, 1.0, rng.integers(2, 6)):
        inner = outline * (share + rng.normal(0, 0.01, 2)) + rng.normal(0, 0.4, 2)
        parts.append(wire(material, inner, wall * rng.uniform(2, 5), 0.12))
    return parts


def _zip(rng: Generator, outline: Outline) -> list[Part]:
    """A zip along `outline`: a double metal line and two pulls."""
    parts = [wire("brass", outline * share, 0.04, 0.14) for share in (1.0, 0.985)]
    for x, y in outline[rng.integers(0, len(outline), 2)]:
        pull = [Part("steel", ellipse(0, 0, 0.5, 0.35, 12), 0.2), Part("steel", rectangle(0.4, -0.2, 2.2, 0.2), 0.12)]
        parts += Placement(x, y, rng.uniform(0, 360)).parts(pull)
    return parts


def _wrinkles(rng: Generator, width: float, height: float, count: int) -> list[Part]:
    """Seams and creases of the lining."""
    return [
        Part("plastic", wander(rng, 1, 4) * reach + rng.uniform(-0.4, 0.4, 2) * (width, height), depth, line_cm=0.1)
        for reach, depth in zip(rng.uniform(3, 18, (count, 2)), rng.uniform(0.5, 3.5, count), strict=True)
    ]


def _rivets(rng: Generator, width: float, height: float, count: int) -> list[Part]:
    sides = rng.uniform(-0.47, 0.47, (count, 2))
    sides[np.arange(count), rng.integers(0, 2, count)] = rng.choice([-0.47, 0.47], count)
    return [
        Part("steel", ellipse(x, y, rng.uniform(0.15, 0.45), rng.uniform(0.15, 0.45), 10), rng.uniform(0.08, 0.4))
        for x, y in sides * (width, height)
    ]


def _wheel(rng: Generator) -> list[Part]:
    radius = rng.uniform(1.8, 2.8)
    return [
        Part("rubber", ellipse(0, 0, radius * rng.uniform(0.4, 1), radius), 1.6, rounded(radius * 0.4)),
        Part("steel", rectangle(-radius * 0.5, -0.2, radius * 0.5, 0.2), 0.25),
        Part("steel", ellipse(0, -radius, 0.45, points=10), 0.2),
        Part("plastic", rounded_rectangle(radius * 1.6, radius * 1.6, 0.6, 0, -radius), 0.8),
    ]


def _trolley(rng: Generator, width: float, height: float) -> list[Part]:
    """The pull-out handle: two metal rails in channels and the grip that joins them."""
    material, wall = [("aluminium", 0.2), ("aluminium", 0.3), ("steel", 0.02), ("steel", 0.04)][rng.integers(4)]
    spread, thick = width * rng.uniform(0.12, 0.24), rng.uniform(1.6, 2.8)
    low = height * rng.uniform(0.3, 0.48)
    parts = []
    for x in (-spread, spread):
        for across, bottom in ((thick, low), (thick * 0.7, low * rng.uniform(0.3, 0.8))):
            rail = rectangle(x - across / 2, -height * 0.47, x + across / 2, bottom)
            parts.append(Part(material, rail, wall, tube(across, wall)))
        parts.append(Part("steel", rectangle(x - thick, low - 0.4, x + thick, low + 0.3), 0.1))
    return [*parts, Part("plastic", rounded_rectangle(2 * spread + thick, 2.4, 1, 0, -height * 0.48), 2.0, rounded(1))]


def suitcase(rng: Generator) -> Bag:
    """A trolley case: hard shell, metal frame, rails, four wheels, a carrying handle."""
    width, height = rng.uniform(33, 42), rng.uniform(44, 56)
    outline = rounded_rectangle(width, height, rng.uniform(2.5, 6))
    frame, thickness = [("steel", 0.04), ("steel", 0.07), ("aluminium", 0.35), ("pvc", 0.6)][rng.integers(4)]
    parts = _walls(rng, outline, "plastic", rng.uniform(0.25, 0.45), rng.uniform(3, 6))
    for share in np.array([0.97, 0.93]) - rng.uniform(0, 0.02):
        parts.append(wire(frame, outline * share, thickness, rng.uniform(0.2, 0.45)))
    parts += _trolley(rng, width, height) + _wrinkles(rng, width, height, 14) + _rivets(rng, width, height, 24)
    parts += _zip(rng, outline * 0.955) if rng.random() < 0.5 else []
    for x in (-0.4, 0.4):
        parts += Placement(x * width, height / 2 + 0.8).parts(_wheel(rng))
        if rng.random() < 0.5:
            parts += Placement(x * width, height / 2 - 1).parts(_wheel(rng))
    handle = band(smooth([(width / 2, -5), (width / 2 + 2.6, -4), (width / 2 + 2.6, 4), (width / 2, 5)], 2, False), 1.0)
    return Bag([*parts, Part("rubber", handle, 1.0, rounded(0.7))], (width * 0.9, height * 0.9))


def backpack(rng: Generator) -> Bag:
    """A rucksack: soft shell, padded straps with buckles, a front pocket, zips."""
    width, height = rng.uniform(30, 36), rng.uniform(38, 47)
    corners = np.array([(-0.5, 0.5), (-0.5, -0.3), (-0.3, -0.5), (0.3, -0.5), (0.5, -0.3), (0.5, 0.5)])
    outline = _soft(rng, smooth(corners * (width, height)), 0.25)
    parts = _walls(rng, outline, "plastic", rng.uniform(0.1, 0.2), rng.uniform(3, 6))
    pocket = rounded_rectangle(width * 0.72, height * 0.4, 3, 0, height * 0.22)
    parts += [Part("plastic", pocket, 0.25), *_zip(rng, pocket), *_zip(rng, outline * 0.96)]
    for side in (-1, 1):
        bow = rng.uniform(0.3, 0.56, 2) * side * width
        across = (side * 4, *bow, side * width * 0.4)
        strap = smooth(np.stack([across, np.array([-0.44, -0.25, 0.2, 0.48]) * height], 1), closed=False)
        parts.append(Part("cloth", band(strap, 4.5), 1.4, rim(0.4, 0.6)))
        parts.append(Part("plastic", strap, 0.4, line_cm=2.2))
        loop = rounded_rectangle(3, 2.6, 0.4, *strap[len(strap) * 2 // 3])
        parts.append(wire("plastic" if rng.random() < 0.7 else "steel", loop, 0.3, 0.3))
    handle = smooth([(-3, -height / 2), (-3, -height / 2 - 4), (3, -height / 2 - 4), (3, -height / 2)], 2, False)
    parts += [Part("cloth", handle, 2.5, line_cm=1.6), *_wrinkles(rng, width, height, 18)]
    return Bag(parts, (width * 0.84, height * 0.84))


def handbag(rng: Generator) -> Bag:
    """A handbag or briefcase: leather shell, arched handles, metal rings and a clasp."""
    width, height = rng.uniform(32, 42), rng.uniform(24, 31)
    outline = _soft(rng, rounded_rectangle(width, height, rng.uniform(2, 5)), 0.25)
    parts = _walls(rng, outline, "rubber", rng.uniform(0.08, 0.2), rng.uniform(2, 5))
    reach = rng.uniform(5, 12)
    for sway in rng.uniform(-2, 2, 2):
        low, high = -height * 0.42, -height / 2 - reach
        arch = [(-7, low), (-6 + sway, high), (6 + sway, high), (7, low)]
        parts.append(Part("rubber", band(smooth(arch, 3, False), 1.0), 0.7, rounded(0.5)))
    parts += [wire("brass", ellipse(x, -height * 0.42, 0.9, points=16), 0.15, 0.25) for x in (-7, 7)]
    parts += [*_zip(rng, outline * 0.95), *_wrinkles(rng, width, height, 18), *_rivets(rng, width, height, 6)]
    parts.append(Part("steel", rounded_rectangle(3, 2, 0.4, 0, -height * 0.3), 0.15))
    return Bag(parts, (width * 0.86, height * 0.84))


def holdall(rng: Generator) -> Bag:
    """A soft sports bag: rounded ends, loose long straps, double piping along its edges."""
    width, height = rng.uniform(42, 52), rng.uniform(26, 33)
    outline = _soft(rng, rounded_rectangle(width, height, rng.uniform(6, 11)), 0.3)
    parts = _walls(rng, outline, "plastic", rng.uniform(0.08, 0.18), rng.uniform(3, 6))
    parts += [wire("pvc", outline * (share, 1), 0.2, 0.3) for share in (0.86, 0.8)]
    reach = (width * 1.05, height * 1.1)
    parts += [Part("cloth", wander(rng, 1, 5) * reach, 0.9, line_cm=2.2) for _ in range(2)]
    parts += [*_zip(rng, outline * (0.9, 0.93)), *_wrinkles(rng, width, height, 18), *_rivets(rng, width, height, 6)]
    return Bag(parts, (width * 0.85, height * 0.85))


def tray(rng: Generator) -> Bag:
    """A plastic tray seen from a source to one side: offset rim and floor, sloping walls with ribs between them."""
    width, height = rng.uniform(48, 58), rng.uniform(34, 40)
    rim_corners = rounded_rectangle(width, height, rng.uniform(1, 3))
    inset, shift = rng.uniform(0.76, 0.86, 2), rng.uniform(-0.05, 0.05, 2) * (width, height)
    floor = rim_corners * inset + shift
    wall = rng.uniform(0.2, 0.35)
    parts = [
        Part("plastic", rim_corners, wall * rng.uniform(2, 3), holes=(floor,)),
        Part("plastic", floor, wall * 1.3),
        *(wire("plastic", edge, 2.5, across) for edge, across in ((rim_corners, 0.45), (floor, 0.25))),
    ]
    edges = np.stack([rim_corners, floor], 1)[2::5]  # from the middle of each corner's arc
    parts += [Part("plastic", edge, 2.0, line_cm=0.2) for edge in edges]
    for x in np.arange(-0.44, 0.45, rng.uniform(0.05, 0.09)) * width:
        for side in (-0.5, 0.5):
            foot = np.array([x, side * height]) * inset + shift
            parts.append(Part("plastic", np.stack([(x, side * height * 0.98), foot]), 1.2, line_cm=0.2))
    sides = np.abs(shift) * 2
    return Bag(parts, (width * inset[0] - sides[0], height * inset[1] - sides[1]), lined=False)


# Relative frequency of bags other than suitcases.
OTHERS: dict[Callable[[Generator], Bag], float] = {backpack: 0.29, handbag: 0.29, holdall: 0.29, tray: 0.13}


def make_bag(rng: Generator, suitcases: float) -> Bag:
    """Draw a suitcase with probability `suitcases`, otherwise a bag by the frequencies in `OTHERS`."""
    if rng.random() < suitcases:
        return suitcase(rng)
    kinds, weights = list(OTHERS), list(OTHERS.values())
    return kinds[rng.choice(len(kinds), p=weights)](rng)
