"""Prohibited items that are tools: pliers, hammers, scissors and wrenches, two or more models of each.

A model draws its design from one generator and its state (opening angle, fill level) from another. It returns parts in
cm around the origin, its long side along x.
"""

from __future__ import annotations

import numpy as np

from pipeline.simulate.outlines import Outline, band, ellipse, rectangle, rounded_rectangle, smooth
from pipeline.simulate.parts import Part, Placement, rounded, wire

Generator = np.random.Generator


def _levers(rng: Generator, state: Generator, jaw: Outline, reach: float, bow: float, sleeve: str) -> list[Part]:
    """Two mirrored levers that cross in a rivet: a jaw to the right, a sleeved handle to the left."""
    opening = state.uniform(3, 16)
    path = smooth([(0.8, -0.4), (-1.5, 0.6), (-reach * 0.4, bow), (-reach, bow * rng.uniform(0.7, 1.1))], 2, False)
    lever = [
        Part("steel", jaw, 0.32, rounded(0.6)),
        Part("steel", band(path, 0.9), 0.25, rounded(0.45)),
        Part(sleeve, band(path[len(path) // 3 :], 1.9), 1.4, rounded(0.9)),
    ]
    rivet = Part("steel", ellipse(0, 0, 1.3), 0.4, rounded(0.5))
    return Placement(reach * 0.3).parts([*_crossed(lever, opening), rivet])


def _crossed(half: list[Part], opening: float) -> list[Part]:
    """Two mirrored halves that cross at the origin, opened by twice an angle in degrees."""
    mirrored = Placement(angle_deg=180 + opening, mirror=True).parts(half)
    return [*Placement(angle_deg=-opening).parts(half), *mirrored]


def combination_pliers(rng: Generator, state: Generator) -> list[Part]:
    """Short blunt jaws, a cutter near the rivet, curved sleeved handles."""
    length, width = rng.uniform(3.8, 5.0), rng.uniform(1.3, 1.7)
    tip = [(length, -width * 0.75), (length + 0.2, -0.1)]
    jaw = smooth([(-1.0, 0.1), (0.6, -width), *tip, (1.8, -0.1), (0.3, 0.5)], 1)
    return _levers(rng, state, jaw, rng.uniform(10, 12), rng.uniform(1.6, 2.4), str(rng.choice(["pvc", "rubber"])))


def needle_nose_pliers(rng: Generator, state: Generator) -> list[Part]:
    """Long thin jaws."""
    length = rng.uniform(6, 7.5)
    jaw = smooth([(-0.8, 0.1), (0.4, -1.2), (length * 0.4, -0.8), (length, -0.35), (length, -0.05), (0.3, 0.4)], 1)
    return _levers(rng, state, jaw, rng.uniform(8.5, 10.5), rng.uniform(1.6, 2.4), str(rng.choice(["pvc", "rubber"])))


def water_pump_pliers(rng: Generator, state: Generator) -> list[Part]:
    """Jaws bent sideways and long straight bare handles."""
    depth = rng.uniform(2.6, 3.6)
    jaw = smooth([(-1, 0.3), (0.8, -1.2), (3.2, -depth), (4.6, -depth + 0.6), (3.6, -1.2), (1.6, 0.2)], 1)
    return _levers(rng, state, jaw, rng.uniform(11, 13), rng.uniform(1.0, 1.6), "plastic")


def _handle(rng: Generator, length: float) -> list[Part]:
    """A hammer's handle from the head at the origin to the left: wood, steel with a grip, or fibreglass."""
    width = rng.uniform(1.7, 2.3)
    shaft = band(np.array([(0, 0), (-length * 0.5, 0), (-length, 0)]), [width * 0.7, width * 0.75, width])
    if rng.random() < 0.5:
        return [Part("paper", smooth(shaft, 1), width, rounded(width / 2))]
    core = Part("steel", rectangle(-length * 0.9, -0.4, 0, 0.4), 0.35, rounded(0.4))
    grip = Part("rubber", rounded_rectangle(length * 0.45, width * 1.2, 0.8, -length * 0.77), width, rounded(width / 2))
    return [core, grip, Part("glass", shaft * (1, 0.7), width * 0.25, rounded(width / 3))]


def claw_hammer(rng: Generator, state: Generator) -> list[Part]:
    """A head with a round face on one side and a curved claw on the other, across the handle."""
    length, face, claw = rng.uniform(16, 19), rng.uniform(4.0, 5.0), rng.uniform(5.0, 6.5)
    neck = smooth([(-0.9, 0), (-0.9, face - 1.4), (0.9, face - 1.4), (0.9, 0)], 1)
    horn = smooth([(1.0, 0.3), (-1.0, 0.3), (-0.9, -claw * 0.5), (-2.4, -claw), (-0.2, -claw * 0.75)], 2)
    head = [
        Part("steel", rectangle(-1.3, -1.3, 1.3, 1.6), 1.0, rounded(0.9)),
        Part("steel", neck, 0.9, rounded(0.9)),
        Part("steel", rounded_rectangle(2.9, 1.7, 0.3, 0, face - 0.8), 1.2, rounded(0.7)),
        Part("steel", horn, 0.6, rounded(0.7)),
    ]
    return Placement(length / 2).parts([*_handle(rng, length), *head])


def ball_hammer(rng: Generator, state: Generator) -> list[Part]:
    """A cylindrical face and, behind it, a ball."""
    length, face, radius = rng.uniform(15, 18), rng.uniform(3.4, 4.4), rng.uniform(1.1, 1.5)
    head = [
        Part("steel", rounded_rectangle(2.4, face, 0.3, 0, face / 2), 1.2, rounded(1.0)),
        Part("steel", rectangle(-0.8, -2.4, 0.8, 0.2), 0.9, rounded(0.8)),
        Part("steel", ellipse(0, -2.4 - radius * 0.6, radius), 1.2, rounded(radius)),
    ]
    return Placement(length / 2).parts([*_handle(rng, length), *head])


def mallet(rng: Generator, state: Generator) -> list[Part]:
    """A heavy block of steel or rubber, symmetric about the handle."""
    length, face, width = rng.uniform(15, 18), rng.uniform(7.5, 9.5), rng.uniform(3.4, 4.4)
    block = rounded_rectangle(width, face, rng.uniform(0.2, 0.8))
    if rng.random() < 0.6:
        head = [Part("steel", block, 1.3, rounded(0.8))]
    else:
        head = [Part("rubber", block, 4.0, rounded(width / 2)), Part("steel", rectangle(-0.5, -1, 0.6, 1), 0.5)]
    return Placement(length / 2).parts([*_handle(rng, length), *head])


def _blades(rng: Generator, state: Generator, blade: Outline, arm: Outline, ring: Part, rivet: float) -> list[Part]:
    """Two mirrored scissor halves crossing in a rivet at the origin."""
    opening = state.uniform(2, 22)
    half = [Part("steel", blade, rng.uniform(0.15, 0.24), rounded(0.5)), Part("steel", arm, 0.22), ring]
    return [*_crossed(half, opening), Part("steel", ellipse(0, 0, rivet, points=14), 0.6)]


def household_scissors(rng: Generator, state: Generator) -> list[Part]:
    """Broad blades and large plastic finger rings."""
    blade, width, radius = rng.uniform(8, 11), rng.uniform(1.1, 1.7), rng.uniform(1.9, 2.5)
    x, y, long = -5.0, 1.3 + radius * 0.6, rng.uniform(1.2, 1.7)
    outline = smooth([(-1, 0.5), (-0.5, -width * 0.6), (blade * 0.6, -width * 0.5), (blade, 0), (0, width * 0.5)], 1)
    bow = ellipse(x, y, radius * long, radius)
    ring = Part("plastic", bow, 1.3, rounded(0.5), holes=(ellipse(x, y, radius * long - 0.8, radius - 0.8),))
    arm = band(smooth([(0.5, -0.3), (-1.5, 0.6), (-4, 1.6)], 2, False), 1.1)
    return Placement(-1).parts(_blades(rng, state, outline, arm, ring, 0.5))


def steel_scissors(rng: Generator, state: Generator) -> list[Part]:
    """Slim all-steel scissors with round wire rings, as surgeons and tailors use."""
    blade, reach, radius = rng.uniform(5.5, 8), rng.uniform(6, 8), rng.uniform(1.3, 1.7)
    outline = smooth([(-0.8, 0.4), (0, -0.6), (blade, -0.1), (blade, 0.1), (0, 0.5)], 1)
    loop = ellipse(-reach - radius * 0.8, 1.4 + radius * 0.4, radius * 1.2, radius, 20)
    ring = wire("steel", loop, 0.35, 0.55)
    arm = band(smooth([(0.5, -0.3), (-2, 0.5), (-reach, 1.3)], 2, False), 0.7)
    return Placement(1).parts(_blades(rng, state, outline, arm, ring, 0.4))


def _open_jaw(size: float, lean_deg: float) -> list[Part]:
    """The open end of a wrench around the origin, its mouth of width `size` to the right."""
    half, outer = size / 2, size * 1.05
    mouth = [(outer * 1.1, -half), (-half * 0.2, -half), (-half * 0.6, 0), (-half * 0.2, half), (outer * 1.1, half)]
    back = np.array([(0.8, 0.95), (-0.4, 1), (-1, 0), (-0.4, -1), (0.8, -0.95)]) * outer
    return Placement(angle_deg=lean_deg).parts([Part("steel", np.array([*mouth, *back]), 0.36, rounded(0.35))])


def _shaft(half: float, width: float, neck: float) -> Part:
    path = np.array([(-half, 0), (0, 0), (half, 0)])
    return Part("steel", band(path, [width, neck, width]), 0.27, rounded(0.5))


def combination_wrench(rng: Generator, state: Generator) -> list[Part]:
    """A ring at one end, an open jaw at the other."""
    half, size = rng.uniform(6.5, 8.5), rng.uniform(1.5, 2.1)
    jaw = Placement(half).parts(_open_jaw(size, rng.uniform(-18, 18)))
    radius = size * 0.95
    ring = Part("steel", ellipse(0, 0, radius), 0.4, rounded(0.35), holes=(ellipse(0, 0, radius * 0.58, points=12),))
    return [_shaft(half - size * 0.7, 1.4, 1.1), *jaw, *Placement(-half).parts([ring])]


def open_ended_wrench(rng: Generator, state: Generator) -> list[Part]:
    """Open jaws of two sizes."""
    half, size = rng.uniform(6.5, 8.5), rng.uniform(1.4, 2.0)
    small = Placement(-half, 0, 180).parts(_open_jaw(size * 0.8, rng.uniform(-18, 18)))
    return [_shaft(half - size * 0.7, 1.5, 1.2), *Placement(half).parts(_open_jaw(size, rng.uniform(-18, 18))), *small]


def adjustable_wrench(rng: Generator, state: Generator) -> list[Part]:
    """A fixed jaw, a movable jaw on a worm screw, and a handle with a hole and a web."""
    length, gap, width = rng.uniform(11, 14), state.uniform(1.0, 2.4), rng.uniform(1.9, 2.4)
    fixed = smooth([(-1.5, 1.4), (-1.8, -1.3), (1.0, -2.4), (3.6, -2.2), (3.4, -1.3), (0.8, -0.6), (0.8, 1.4)], 1)
    jaw = [(0.9, gap - 0.6), (3.4, gap - 0.3), (3.2, gap + 0.7), (0.8, gap + 1.5)]
    moving = smooth([*jaw, (-0.9, 1.4), (-0.9, 0.4)], 1)
    grip = band(np.array([(-0.5, 0), (-length * 0.5, 0), (-length, 0)]), [width, width * 0.9, width * 1.25])
    parts = [
        Part("steel", fixed, 0.36, rounded(0.4)),
        Part("steel", moving, 0.36, rounded(0.4)),
        Part("steel", rounded_rectangle(1.2, 1.3, 0.2, -0.2, 0.9), 0.4),
        Part("steel", grip, 0.27, rounded(0.4), holes=(ellipse(-length + 0.9, 0, 0.5, points=14),)),
        Part("steel", grip * (0.85, 0.5) - (0.8, 0), 0.12),
    ]
    return Placement(length * 0.4).parts(parts)
