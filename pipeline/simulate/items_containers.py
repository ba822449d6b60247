"""Prohibited items that hold energy or fluid: power banks, sprayers and lighters, two or more models of each.

A model draws its design from one generator and its state (opening angle, fill level) from another. It returns parts in
cm around the origin, its long side along x.
"""

from __future__ import annotations

import numpy as np

from pipeline.simulate.outlines import Outline, ellipse, rectangle, rounded_rectangle, smooth, wander
from pipeline.simulate.parts import Part, Placement, rim, rounded, tube, wire

Generator = np.random.Generator


def _electronics(rng: Generator, x: float, width: float) -> list[Part]:
    """The charging board of a power bank: a strip with a coil, chips and metal sockets."""
    sides, spots = (-width * 0.28, width * 0.28), rng.uniform(-width * 0.4, width * 0.4, 4)
    sockets = [Part("steel", rounded_rectangle(1.2, 1.2, 0.1, x + 0.4, y), 0.06, rim(0.2, 0.6)) for y in sides]
    chips = [Part("copper", rounded_rectangle(0.5, 0.4, 0.05, x - 0.4, y), 0.08) for y in spots]
    board = Part("board", rectangle(x - 0.8, -width * 0.45, x + 0.8, width * 0.45), 0.2)
    coil = Part("copper", ellipse(x - 0.3, 0, 0.5, points=16), 0.2, holes=(ellipse(x - 0.3, 0, 0.22, points=12),))
    return [board, coil, *chips, *sockets]


def _case(rng: Generator, length: float, width: float, radius: float) -> Part:
    material, wall = ("plastic", 0.3) if rng.random() < 0.6 else ("aluminium", 0.15)
    return Part(material, rounded_rectangle(length, width, radius), 2 * wall, rim(0.25, 0.5))


def cell_power_bank(rng: Generator, state: Generator) -> list[Part]:
    """Round steel-canned cells side by side, a board at one end."""
    cells = int(rng.integers(2, 5))
    length, pitch = rng.uniform(9.5, 11.5), 2.0
    width = cells * pitch + 0.6
    parts = [_case(rng, length, width, rng.uniform(0.4, 1.4)), *_electronics(rng, length / 2 - 1.0, width)]
    for row in range(cells):
        y = (row - (cells - 1) / 2) * pitch
        parts += _cell(rectangle(-length / 2 + 0.5, y - 0.9, -length / 2 + 7.0, y + 0.9), 1.2, 0.9)
        parts.append(Part("steel", rectangle(-length / 2 + 6.9, y - 0.5, -length / 2 + 7.2, y + 0.5), 0.15))
    return parts


def _cell(outline: Outline, thickness: float, radius: float) -> list[Part]:
    """A battery cell in its steel can."""
    return [Part("battery", outline, thickness, rounded(radius)), Part("steel", outline, 0.03, tube(radius, 0.03))]


def pouch_power_bank(rng: Generator, state: Generator) -> list[Part]:
    """One or two flat pouch cells in a slim case, a board at one end."""
    length, width = rng.uniform(12, 14.5), rng.uniform(6.2, 7.5)
    pouch = rounded_rectangle(length - 3.2, width - 1.0, 0.3, -1.1)
    parts = [_case(rng, length, width, rng.uniform(0.6, 1.8)), *_electronics(rng, length / 2 - 1.1, width)]
    parts.append(Part("battery", pouch, rng.uniform(0.5, 0.9), rim(0.3, 0.9)))
    if rng.random() < 0.5:
        parts.append(Part("aluminium", rectangle(-length / 2 + 0.6, -0.1, length / 2 - 2.7, 0.1), 0.4))
    return parts


def stick_power_bank(rng: Generator, state: Generator) -> list[Part]:
    """A single cell in a tube, like a lipstick."""
    length, width = rng.uniform(9, 10.5), rng.uniform(2.6, 3.2)
    case = _case(rng, length, width, rng.uniform(0.3, 1.2))
    cell = _cell(rectangle(-length / 2 + 0.4, -0.95, -length / 2 + 6.9, 0.95), 1.6, 0.95)
    return [case, *_electronics(rng, length / 2 - 1.1, width), *cell]


def aerosol_can(rng: Generator, state: Generator) -> list[Part]:
    """A metal can under pressure: domed bottom and shoulder, liquid, valve with dip tube, cap."""
    length, width = rng.uniform(12, 15), rng.uniform(3.6, 4.8)
    half, level = width / 2, state.uniform(0.45, 0.85)
    can, wall = ("steel", 0.03) if rng.random() < 0.5 else ("aluminium", 0.08)
    shoulder = [(0, -half), (length * 0.74, -half), (length * 0.8, -half * 0.6), (length * 0.83, -half * 0.35)]
    outline = np.array(shoulder + [(x, -y) for x, y in reversed(shoulder)])
    parts = [
        Part(can, outline, wall, tube(half, wall)),
        Part("water", rectangle(0.3, -half * 0.94, length * 0.74 * level, half * 0.94), width, rounded(half)),
        Part(can, smooth([(0, -half), (0.8, 0), (0, half), (0.2, 0)], 2), 0.1),
        Part("steel", rectangle(length * 0.72, -0.9, length * 0.84, 0.9), 0.08),
        Part("plastic", np.array([(0.6, half * 0.5), (length * 0.4, 0.3), (length * 0.8, 0)]), 0.3, line_cm=0.35),
        Part("steel", rectangle(length * 0.83, -0.3, length * 0.9, 0.3), 0.2),
        Part("plastic", rounded_rectangle(length * 0.2, width * 0.9, 0.5, length * 0.9), 0.35, tube(half, 0.2)),
    ]
    return Placement(-length / 2).parts(parts)


def pepper_spray(rng: Generator, state: Generator) -> list[Part]:
    """A slim can with a thumb trigger under a hood, and a ring or clip."""
    length, width = rng.uniform(10, 12.5), rng.uniform(2.8, 3.6)
    half = width / 2
    body = rounded_rectangle(length * 0.72, width, 0.5, length * 0.36)
    hood = smooth([(0, -half), (2.4, -half), (3.2, -half * 0.3), (2.0, 0), (2.2, half), (0, half)], 1)
    parts = [
        Part("aluminium", body, 0.1, tube(half, 0.1)),
        Part("water", body * (state.uniform(0.55, 0.85), 0.92) + (0.2, 0), width, rounded(half)),
        *Placement(length * 0.71).parts([Part("plastic", hood, 1.6, rim(0.3, 0.5))]),
        Part("steel", rectangle(length * 0.7, -0.35, length * 0.82, 0.35), 0.2),
        Part("steel", np.array([(length * 0.2, half + 0.25), (length * 0.7, half + 0.25)]), 0.15, line_cm=0.3),
        wire("steel", ellipse(length + 0.8, -half * 0.4, 1.0, points=18), 0.2, 0.25),
    ]
    return Placement(-length / 2).parts(parts)


def pump_sprayer(rng: Generator, state: Generator) -> list[Part]:
    """A plastic bottle with a pump: spring, ball and dip tube, trigger head to one side."""
    length, width = rng.uniform(12, 14.5), rng.uniform(4.0, 5.4)
    half, level = width / 2, state.uniform(0.5, 0.9)
    shoulder, neck = length * 0.55, length * 0.7
    bottle = smooth([(0, -half), (0, half), (shoulder, half), (neck, 0.9), (neck, -0.9), (shoulder, -half)], 1)
    head = np.array([(0.7, -1.1), (0.7, 1.1), (0.95, 1.2), (1, 3.2), (0.9, 3.4), (0.84, 1.3), (0.97, -1.0)])
    spring = np.arange(length * 0.72, length * 0.86, 0.32)
    coils = [Part("steel", rectangle(x, -0.4, x + 0.14, 0.4), 0.3) for x in spring]
    parts = [
        Part("plastic", bottle, 0.15, tube(half, 0.15)),
        Part("water", rectangle(0.3, -half * 0.9, shoulder * level, half * 0.9), width, rounded(half)),
        Part("plastic", np.array([(0.8, half * 0.4), (neck, 0)]), 0.3, line_cm=0.4),
        Part("plastic", smooth(head * (length, 1), 1), 1.4, rim(0.3, 0.7)),
        Part("steel", ellipse(neck, 0, 0.3, points=12), 0.5),
    ]
    return Placement(-length / 2, -0.8).parts(parts + coils)


def disposable_lighter(rng: Generator, state: Generator) -> list[Part]:
    """A plastic tank of fuel with a steel hood, spark wheel, flint spring and valve."""
    length, width = rng.uniform(7, 8.5), rng.uniform(2.2, 2.8)
    half, level = width / 2, state.uniform(0.4, 0.9)
    wheel, axle = (ellipse(length * 0.82, half * 0.35, radius) for radius in (0.62, 0.2))
    tank = rounded_rectangle(length * 0.78, width, 0.7, length * 0.39)
    hood = np.array([(0, -half * 0.95), (1.4, -half * 0.9), (1.5, half * 0.1), (0, half * 0.2)])
    parts = [
        Part("plastic", tank, 1.1, rim(0.3, 0.5)),
        Part("fuel", rectangle(0.3, -half * 0.85, length * 0.74 * level, half * 0.85), 1.4),
        Part("plastic", rectangle(length * 0.2, -0.12, length * 0.74, 0.12), 0.8),
        *Placement(length * 0.78).parts([Part("steel", hood, 0.09, rim(0.2, 0.6))]),
        Part("steel", wheel, 0.4, holes=(axle,)),
        Part("steel", rectangle(length * 0.48, half * 0.25, length * 0.76, half * 0.5), 0.25),
        Part("brass", rectangle(length * 0.7, -half * 0.5, length * 0.86, -half * 0.2), 0.3),
    ]
    return Placement(-length / 2).parts(parts)


def flip_lighter(rng: Generator, state: Generator) -> list[Part]:
    """A steel case with a hinged lid, closed or open, over a wick chimney and a cotton-filled insert."""
    length, width = rng.uniform(5.5, 6.5), rng.uniform(3.4, 4.0)
    half, split = width / 2, length * 0.58
    lid = [
        Part("steel", rounded_rectangle(length - split, width, 0.3, (length - split) / 2), 0.06, rim(0.2, 0.7)),
        Part("steel", rectangle(0.1, -half * 0.7, length - split - 0.5, -half * 0.45), 0.15),
    ]
    opened = state.uniform(60, 130) if state.random() < 0.4 else 0.0
    hinge = Placement(split, half, opened).parts(Placement(0, -half).parts(lid))
    chimney = rounded_rectangle(1.8, width * 0.5, 0.3, split + 0.7, -half * 0.2)
    across = (-half * 0.5, -half * 0.2, half * 0.1)
    holes = [Part("steel", ellipse(split + 0.7, y, 0.2, points=10), 0.1) for y in across]
    parts = [
        Part("steel", rounded_rectangle(split, width, 0.3, split / 2), 0.07, rim(0.2, 0.7)),
        Part("cloth", rectangle(0.4, -half * 0.8, split - 0.3, half * 0.8), 1.2),
        Part("steel", chimney, 0.05, rim(0.15, 0.6)),
        Part("steel", ellipse(split + 0.4, half * 0.55, 0.6), 0.4),
        Part("steel", rectangle(1.0, half * 0.3, split, half * 0.55), 0.2),
        Part("copper", wander(rng, 1.6) + np.array((split / 2, 0)), 0.1, line_cm=0.12),
    ]
    return Placement(-length / 2).parts([*parts, *hinge, *holes])


def torch_lighter(rng: Generator, state: Generator) -> list[Part]:
    """A metal body shaped like a fat pen, with a nozzle, a piezo igniter and a fuel tank."""
    length, width = rng.uniform(8, 9.5), rng.uniform(2.4, 3.0)
    half = width / 2
    body = np.array([(0, -1), (0, 1), (0.7, 1), (0.85, 0.5), (1, 0.45), (1, -0.1), (0.75, -1)]) * (length, half)
    parts = [
        Part("aluminium", smooth(body, 1), 0.3, rim(0.25, 0.5)),
        Part("fuel", rounded_rectangle(length * 0.45, width * 0.75, 0.4, length * 0.27), 1.6),
        Part("brass", rectangle(length * 0.72, half * 0.02, length * 0.98, half * 0.3), 0.35, rounded(0.2)),
        Part("steel", rectangle(length * 0.52, -half * 0.6, length * 0.7, half * 0.3), 0.15, rim(0.15, 0.5)),
        Part("copper", np.array([(length * 0.6, -half * 0.3), (length * 0.9, half * 0.5)]), 0.2, line_cm=0.15),
        Part("brass", ellipse(0.2, 0, 0.4, points=12), 0.4),
    ]
    return Placement(-length / 2).parts(parts)
