"""Harmless things. Each function draws a shape from a generator and returns parts in cm around the origin."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from pipeline.simulate.outlines import band, ellipse, rectangle, resample, rounded_rectangle, smooth, wander
from pipeline.simulate.parts import Part, Placement, rim, rounded, tube, wire
from pipeline.simulate.pose import lean

Generator = np.random.Generator


def folds(rng: Generator, rows: int, columns: int, depth: float) -> np.ndarray:
    """Relative thickness of folded material, mean about 1, as a coarse grid for `Part.texture`."""
    return (1 + depth * rng.standard_normal((rows, columns))).astype(np.float32).clip(0.05)


def garment(rng: Generator) -> list[Part]:
    """A folded garment: a soft heap of cloth or coated fabric with the fine lines of its hems."""
    width, height = rng.uniform(8, 22), rng.uniform(6, 16)
    corners = resample(rounded_rectangle(width, height, rng.uniform(1, 5)), 3.0)
    corners += rng.normal(0, 0.4, corners.shape)
    thickness = rng.uniform(2.0, 11.0)
    few, many = rng.permutation([rng.integers(3, 8), rng.integers(12, 32)])  # creases along one side
    material = "pvc" if rng.random() < 0.35 else "cloth"
    thickness *= 0.1 if material == "pvc" else 1
    edge, creases = rounded(rng.uniform(0.5, 2.5)), folds(rng, few, many, 0.35)
    cloth = Part(material, smooth(corners, 1), thickness, edge, texture=creases)
    hems = [
        Part("cloth", wander(rng, width * 0.5, 4) + rng.normal(0, height * 0.2, 2), rng.uniform(1, 5), line_cm=0.14)
        for _ in range(rng.integers(5, 12))
    ]
    return [cloth, *hems]


def bottle(rng: Generator) -> list[Part]:
    """A bottle of plastic or glass, partly full."""
    length, width, level = rng.uniform(13, 22), rng.uniform(4.5, 7.5), rng.uniform(0.2, 0.95)
    half, neck = width / 2, rng.uniform(1.0, 1.4)
    wall, material = (0.08, "plastic") if rng.random() < 0.7 else (0.28, "glass")
    side = [(0, -half), (length * 0.62, -half), (length * 0.8, -neck), (length, -neck)]
    outline = smooth(side + [(x, -y) for x, y in reversed(side)], 1)
    liquid = rectangle(0.3, -half * 0.93, 0.3 + length * 0.6 * level, half * 0.93)
    parts = [
        Part(material, outline, wall, tube(half, wall)),
        Part("water", liquid, width * 0.9, rounded(half)),
        Part("plastic", rectangle(length * 0.93, -neck * 1.15, length * 1.03, neck * 1.15), 0.8),
    ]
    return Placement(-length / 2).parts(parts)


def shoe(rng: Generator) -> list[Part]:
    """A shoe from above: rubber sole with a tread, upper, eyelets, sometimes a steel shank."""
    length, width = rng.uniform(23, 29), rng.uniform(8, 10)
    waist = width * rng.uniform(0.3, 0.38)
    side = [(0, -width * 0.36), (length * 0.4, -waist), (length * 0.75, -width * 0.5), (length, -width * 0.22)]
    sole = smooth(side + [(x, -y * 0.95) for x, y in reversed(side)], 2)
    parts = [
        Part("rubber", sole, rng.uniform(1.0, 2.4), rim(0.5, 0.75), texture=folds(rng, 9, 24, 0.18)),
        Part("cloth", sole * 0.96 + (0.4, 0), 1.2, tube(width / 2, 0.4)),
    ]
    if rng.random() < 0.4:
        parts.append(Part("steel", rectangle(length * 0.25, -0.7, length * 0.6, 0.7), 0.12))
    holes = itertools.product(np.linspace(length * 0.5, length * 0.72, 5), (-1.4, 1.4))
    parts += [Part("brass", ellipse(x, y, 0.25, points=8), 0.12) for x, y in holes]
    return Placement(-length / 2).parts(parts)


def book(rng: Generator) -> list[Part]:
    """A book lying flat, or a stack of magazines."""
    width, height = rng.uniform(11, 21), rng.uniform(15, 28)
    block = rectangle(-width / 2, -height / 2, width / 2, height / 2)
    return [
        Part("paper", block, rng.uniform(1.2, 3.5)),
        Part("paper", rectangle(-width / 2 - 0.3, -height / 2, -width / 2 + 0.3, height / 2), 1.2),
    ]


def laptop(rng: Generator) -> list[Part]:
    """A notebook computer: metal or plastic shell, board with chips, fan, battery cells and hinges."""
    width, height = rng.uniform(27, 34), rng.uniform(19, 23)
    shell = ("aluminium", 0.28) if rng.random() < 0.6 else ("plastic", 0.7)
    fan, hub = (ellipse(width * 0.33, -height * 0.22, radius) for radius in (2.6, 1))
    cells = np.linspace(-width * 0.38, width * 0.22, 6)
    pitch = cells[1] - cells[0]
    parts = [
        Part(shell[0], rounded_rectangle(width, height, 0.8), shell[1], rim(0.5, 0.75)),
        *Placement(rng.uniform(-2, 2), -height * 0.14).parts(circuit(rng, width * 0.8, height * 0.45, 0.22)),
        Part("copper", band(wander(rng, width * 0.5, 3) * (1, 0.2) - (0, height * 0.2), 0.8), 0.05),
        Part("plastic", fan, 0.5, holes=(hub,)),
    ]
    parts += [Part("battery", rounded_rectangle(pitch * 0.92, height * 0.27, 0.3, x, height * 0.3), 0.7) for x in cells]
    parts += [Part("steel", rectangle(x - 1.5, -height / 2, x + 1.5, -height / 2 + 0.6), 0.25) for x in (-9, 9)]
    return parts


def circuit(rng: Generator, width: float, height: float, thickness: float) -> list[Part]:
    """A circuit board with chips and connectors at random places."""
    parts = [Part("board", rectangle(-width / 2, -height / 2, width / 2, height / 2), thickness)]
    for _ in range(int(np.clip(width * height / 9, 5, 26))):
        x, y = rng.uniform(-0.46, 0.46, 2) * (width, height)
        w, h = rng.uniform(0.3, 1.8, 2)
        material = str(rng.choice(["copper", "steel", "board", "aluminium"], p=[0.4, 0.3, 0.2, 0.1]))
        parts.append(Part(material, rectangle(x - w / 2, y - h / 2, x + w / 2, y + h / 2), rng.uniform(0.03, 0.12)))
    return parts


def gadget(rng: Generator) -> list[Part]:
    """A phone, camera, radio or charger: a case with a board, one battery and a few metal parts."""
    width, height = rng.uniform(6, 15), rng.uniform(5, 9)
    cell = rounded_rectangle(width * rng.uniform(0.25, 0.45), height * rng.uniform(0.4, 0.7), 0.2, width * 0.18)
    parts = [
        Part("plastic", rounded_rectangle(width, height, rng.uniform(0.3, 1.5)), 0.6, rim(0.3, 0.6)),
        *circuit(rng, width * 0.8, height * 0.75, 0.15),
        Part("battery", cell, rng.uniform(0.3, 0.9)),
    ]
    if rng.random() < 0.5:
        parts.append(Part("glass", ellipse(-width * 0.2, 0, height * 0.25), 0.9, rounded(height * 0.25)))
    return parts


def cable(rng: Generator) -> list[Part]:
    """A tangled cable with a plug at each end."""
    path = wander(rng, rng.uniform(9, 18), int(rng.integers(6, 12)))
    plug = [
        Part("pvc", rounded_rectangle(3.0, 1.3, 0.4), 0.9, rounded(0.6)),
        Part("steel", rectangle(1.2, -0.4, 2.6, 0.4), 0.1),
    ]
    parts = [Part("pvc", path, 0.25, line_cm=0.45), Part("copper", path, rng.uniform(0.03, 0.08), line_cm=0.25)]
    for x, y in (path[0], path[-1]):
        parts += Placement(x, y, rng.uniform(0, 360)).parts(plug)
    return parts


def umbrella(rng: Generator) -> list[Part]:
    """A folded umbrella: steel shaft and ribs in a roll of cloth, with a handle."""
    length = rng.uniform(22, 32)
    ribs = [
        Part("steel", np.array([(0, y), (length * rng.uniform(0.6, 0.9), y * 0.3)]), 0.05, line_cm=0.12)
        for y in rng.uniform(-1.8, 1.8, 9)
    ]
    parts = [
        Part("cloth", rounded_rectangle(length, 5, 2, length / 2), 4.5, rounded(2.5)),
        Part("steel", rectangle(0, -0.45, length, 0.45), 0.06, tube(0.45, 0.06)),
        Part("plastic", rounded_rectangle(6, 2.8, 1.2, length + 2.5), 2.4, rounded(1.4)),
    ]
    return Placement(-length / 2).parts(parts + ribs)


def keys(rng: Generator) -> list[Part]:
    """A bunch of keys on a ring."""
    parts = [wire("steel", ellipse(0, 0, 1.2, points=16), 0.15, 0.2)]
    for angle in rng.uniform(0, 360, rng.integers(2, 5)):
        key = [
            Part("brass", ellipse(2.0, 0, 1.1, 1.0, 16), 0.12, holes=(ellipse(1.4, 0, 0.3, points=8),)),
            Part("brass", rectangle(2.8, -0.35, 2.8 + rng.uniform(2, 3), 0.35), 0.12),
        ]
        parts += Placement(angle_deg=angle).parts(key)
    return parts


def coins(rng: Generator) -> list[Part]:
    """Loose change."""
    return [
        Part("copper", ellipse(x, y, rng.uniform(0.8, 1.3), points=18), rng.uniform(0.1, 0.18))
        for x, y in rng.normal(0, 2.2, (rng.integers(2, 7), 2))
    ]


def fruit(rng: Generator) -> list[Part]:
    """A few round fruits, or rolls, side by side."""
    radius = rng.uniform(2.4, 4.2)
    return [
        Part("water", ellipse(x, y, radius, radius * rng.uniform(0.9, 1.2)), radius * 1.7, rounded(radius))
        for x, y in rng.uniform(-1.2, 1.2, (rng.integers(1, 4), 2)) * radius * 2
    ]


def tin(rng: Generator) -> list[Part]:
    """A tin or a jar of food: metal or glass wall, dense filling."""
    width, height = rng.uniform(6, 9), rng.uniform(6, 12)
    outline = rounded_rectangle(width, height, 0.4)
    material, wall = ("steel", 0.025) if rng.random() < 0.5 else ("glass", 0.25)
    return [
        Part(material, outline, wall, tube(width / 2, wall)),
        Part("water", outline * 0.94, width * 0.45, rounded(width / 2), texture=folds(rng, 6, 6, 0.12)),
    ]


def tubes(rng: Generator) -> list[Part]:
    """A wash bag: a few tubes, a comb, a small flask."""
    parts: list[Part] = []
    for y in np.arange(-4.0, 4.1, rng.uniform(2.4, 3.4)):
        length, width = rng.uniform(7, 14), rng.uniform(1.6, 3.0)
        body = rounded_rectangle(length, width, 0.6, rng.uniform(-2, 2), y)
        wall = Part(str(rng.choice(["plastic", "aluminium"])), body, 0.12, tube(width / 2, 0.06))
        parts += [Part("water", body, width * 0.7, rounded(width / 2)), wall]
    return parts


def spectacles(rng: Generator) -> list[Part]:
    """A pair of glasses, folded."""
    lenses = [smooth(rounded_rectangle(5, 3.6, 1.4, x), 1) for x in (-3.1, 3.1)]
    parts = [Part("glass", lens, 0.18) for lens in lenses]
    parts += [wire("steel", lens, 0.1, 0.2) for lens in lenses]
    return [*parts, Part("steel", smooth([(-5.5, -0.6), (0, -2.0), (6, -1.5)], 2, False), 0.15, line_cm=0.3)]


def belt(rng: Generator) -> list[Part]:
    """A rolled leather belt with its buckle."""
    turns = np.linspace(0, rng.uniform(4, 7) * np.pi, 60)
    radius = 1.5 + 0.22 * turns
    roll = np.stack([radius * np.cos(turns), radius * np.sin(turns)], 1)
    buckle = rectangle(-2, -1.8, 2, 1.8)
    return [Part("rubber", roll, 3.0, line_cm=0.35), *Placement(*roll[-1]).parts([wire("steel", buckle, 0.2, 0.35)])]


def hardware(rng: Generator) -> list[Part]:
    """Small metal things: press studs, zip pulls, a buckle, a pen."""
    parts = [Part("brass", ellipse(x, y, rng.uniform(0.2, 0.5), points=10), 0.15) for x, y in rng.normal(0, 4, (7, 2))]
    loop = rounded_rectangle(rng.uniform(1.0, 2.4), rng.uniform(1.0, 2.4), 0.3)
    parts.append(wire("steel", loop, 0.15, 0.22))
    pen = Placement(rng.uniform(-4, 4), 3, rng.uniform(0, 180)).parts([
        Part("plastic", rectangle(-6.5, -0.45, 6.5, 0.45), 0.5, rounded(0.45)),
        Part("brass", rectangle(3, -0.15, 7, 0.15), 0.1),
    ])  # fmt: skip
    return parts + pen


Thing = Callable[[Generator], list[Part]]

# Relative frequency of each thing in a bag.
CLUTTER: dict[Thing, float] = {
    garment: 6, bottle: 1.5, shoe: 1.2, book: 1.2, laptop: 0.6, gadget: 2.2, cable: 2.5, umbrella: 0.7, keys: 1,
    coins: 0.8, fruit: 0.8, tin: 1.2, tubes: 1.2, spectacles: 0.6, belt: 0.5, hardware: 5,
}  # fmt: skip


# Rigid things, which lean on what is below them.
LEANING = frozenset({bottle, shoe, book, laptop, gadget, umbrella, keys, tin, spectacles})


def draw_things(rng: Generator, count: int) -> list[list[Part]]:
    """Draw `count` things by their frequencies, rigid ones leaning a little."""
    things, weights = list(CLUTTER), np.array(list(CLUTTER.values()))
    drawn = [things[index] for index in rng.choice(len(things), count, p=weights / weights.sum())]
    return [lean(rng, thing(rng)) if thing in LEANING else thing(rng) for thing in drawn]
