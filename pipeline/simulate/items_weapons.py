"""Prohibited items that are weapons: batons, guns, bullets, handcuffs and knives, two or more models of each.

A model draws its design from one generator and its state (opening angle, fill level) from another. It returns parts in
cm around the origin, its long side along x.
"""

from __future__ import annotations

import itertools

import numpy as np

from pipeline.simulate.outlines import arc, band, ellipse, rectangle, rounded_rectangle, smooth
from pipeline.simulate.parts import Part, Placement, rounded, tube, wire

Generator = np.random.Generator


def telescopic_baton(rng: Generator, state: Generator) -> list[Part]:
    """Three steel tubes that slide into each other, a knob at the tip and a rubber grip."""
    length, width = rng.uniform(19, 23), rng.uniform(1.9, 2.6)
    ends = np.cumsum([0, rng.uniform(0.38, 0.5), rng.uniform(0.2, 0.28), 0.3]) * length
    parts = [Part("rubber", rounded_rectangle(ends[1], width + 0.6, 0.6, ends[1] / 2), width, rounded(width / 2))]
    for step, (start, end) in enumerate(itertools.pairwise(ends)):
        across = width * (1 - 0.22 * step)
        parts.append(Part("steel", rectangle(start, -across / 2, end, across / 2), 0.09, tube(across / 2, 0.09)))
    parts.append(Part("steel", ellipse(ends[-1], 0, width * 0.32), 0.7, rounded(0.5)))
    return Placement(-length / 2).parts(parts)


def rubber_baton(rng: Generator, state: Generator) -> list[Part]:
    """A tapered rubber club around a steel core, with a ribbed grip and sometimes a side handle."""
    length, width = rng.uniform(19, 23), rng.uniform(2.6, 3.4)
    body = band(np.array([(-length / 2, 0), (0, 0), (length / 2, 0)]), [width, width * 0.85, width * 0.75])
    parts = [
        Part("rubber", smooth(body), width, rounded(width / 2)),
        Part("steel", rectangle(-length * 0.45, -0.35, length * 0.45, 0.35), 0.5, rounded(0.35)),
    ]
    ribs = np.arange(-length * 0.45, -length * 0.2, 0.9)
    parts += [Part("rubber", rectangle(x, -width / 2, x + 0.4, width / 2), 0.8) for x in ribs]
    if rng.random() < 0.4:
        x = -length * rng.uniform(0.12, 0.2)
        handle = band(np.array([(x, 0), (x, 4.5), (x, 5.5)]), [width * 0.7, width * 0.7, width])
        parts.append(Part("rubber", handle, width * 0.8, rounded(width / 3)))
    return parts


def pistol(rng: Generator, state: Generator) -> list[Part]:
    """A self-loading pistol: slide, barrel, frame with trigger guard, slanted grip with a filled magazine."""
    length, high, slant = rng.uniform(16, 20), rng.uniform(2.3, 3.0), rng.uniform(0.8, 2.4)
    grip, wide = rng.uniform(7.5, 9.5), rng.uniform(3.2, 4.2)
    polymer = rng.random() < 0.35
    base = high + 1.1
    handle = smooth([(0.4, high), (wide + 1.2, high), (wide + 1 - slant, base + grip), (-slant, base + grip)], 1)
    guard = smooth([(wide + 1, base), (wide + 1.2, base + 2.4), (wide + 4.0, base + 2.2), (wide + 4.6, base)], 2, False)
    parts = [
        Part("steel", rectangle(0, 0, length, high), rng.uniform(0.2, 0.34), rounded(0.8)),
        Part("steel", rectangle(length * 0.3, 0.5, length + 0.3, high * 0.7), 0.2, rounded(0.6)),
        Part("steel", rectangle(0.6, high * 0.6, length * rng.uniform(0.7, 0.95), base), 0.1 if polymer else 0.25),
        Part("plastic" if polymer else "steel", handle, 1.6 if polymer else 0.16),
        Part("steel", guard, 0.4, line_cm=0.45),
        Part("steel", np.array([(wide + 2.0, base), (wide + 2.5, base + 1.7)]), 0.5, line_cm=0.4),
        Part("steel", rectangle(length - 0.9, -0.4, length - 0.4, 0.2), 0.4),
    ]
    return Placement(-length / 2, -grip / 2).parts(parts + _magazine(grip, high, wide, slant))


def _magazine(grip: float, high: float, wide: float, slant: float) -> list[Part]:
    """Cartridges stacked in the grip of a pistol, in their steel sheath."""
    parts = []
    for step in np.linspace(0.1, 0.9, 7):
        left, y = 0.9 - slant * step, high + step * grip
        parts.append(Part("brass", rectangle(left, y, left + wide * 0.6, y + 0.6), 0.12, rounded(0.3)))
        parts.append(Part("lead", ellipse(left + wide * 0.7, y + 0.3, 0.5, 0.32), 0.1))
    sheath = np.array([(0.8, high), (wide + 0.3, high), (wide + 0.3 - slant, high + grip), (0.8 - slant, high + grip)])
    return [*parts, Part("steel", sheath, 0.12)]


def revolver(rng: Generator, state: Generator) -> list[Part]:
    """A revolver: barrel, cylinder with its chambers, open frame, hammer and a curved grip."""
    barrel, frame = rng.uniform(6, 11), rng.uniform(6.5, 7.5)
    thick, grip = rng.uniform(0.25, 0.42), rng.uniform(6.5, 8.5)
    drum = rounded_rectangle(4.2, 4.2, 0.5, frame - 3.0, 1.6)
    handle = smooth([(0, 2.4), (2.6, 3.2), (2.0, 3.6 + grip * 0.5), (1.2, 3 + grip), (-3.2, 3 + grip), (-1.6, 5)], 2)
    guard = smooth([(2.4, 3.6), (2.6, 6.2), (5.4, 6.2), (5.8, 3.6)], 2, False)
    parts = [
        Part("steel", rectangle(frame - 0.5, 0, frame + barrel, 1.5), thick, rounded(0.75)),
        Part("steel", rectangle(frame, 1.8, frame + barrel * 0.75, 2.4), thick, rounded(0.4)),
        Part("steel", rectangle(0, -0.3, frame, 3.7), 0.25, holes=(rectangle(1.4, 0.2, 5.4, 3.1),)),
        Part("steel", drum, thick * 1.1, rounded(1.6)),
        Part("steel", smooth([(0.4, 0.4), (-1.6, -1.3), (-1.0, 0.9), (0.2, 2.2)], 1), 0.5),
        Part("steel", handle, 0.12),
        Part("paper" if rng.random() < 0.5 else "rubber", handle, 2.2, rounded(1.2)),
        Part("steel", guard, 0.4, line_cm=0.45),
        Part("steel", np.array([(3.6, 3.6), (4.1, 5.2)]), 0.5, line_cm=0.4),
        Part("steel", rectangle(frame + barrel - 0.9, -0.6, frame + barrel - 0.3, 0.1), 0.4),
    ]
    parts += [Part("lead", rectangle(frame - 4.8, y, frame - 1.4, y + 0.7), 0.06) for y in (0.0, 1.25, 2.5)]
    return Placement(-(frame + barrel) / 2, -3.5).parts(parts)


def _cartridge(case: float, width: float, tip: float, tip_width: float, shoulder: float) -> list[Part]:
    """A brass case of length `case` with a jacketed lead bullet of length `tip` in it."""
    half, neck = width / 2, tip_width / 2
    profile = [(0, -half), (case - shoulder, -half), (case - shoulder * 0.5, -neck), (case, -neck)]
    case_outline = np.array(profile + [(x, -y) for x, y in reversed(profile)])
    nose = [(case - 0.8, -neck * 0.95), (case + tip * 0.35, -neck * 0.95), (case + tip * 0.8, -neck * 0.5)]
    bullet = smooth([*nose, (case + tip, 0), *[(x, -y) for x, y in reversed(nose)]], 1)
    parts = [
        Part("brass", case_outline, 0.12, tube(half, 0.1)),
        Part("steel", case_outline, width * 0.06, rounded(half)),
        Part("brass", rectangle(-0.25, -half * 1.12, 0.3, half * 1.12), width * 0.3),
        Part("lead", bullet, tip_width * 0.6, rounded(neck)),
    ]
    return Placement(-(case + tip) / 2).parts(parts)


def rifle_round(rng: Generator, state: Generator) -> list[Part]:
    """A bottle-necked rifle cartridge with a long pointed bullet."""
    width = rng.uniform(1.0, 1.4)
    return _cartridge(rng.uniform(3.6, 4.8), width, rng.uniform(1.8, 2.6), width * 0.62, 0.8)


def pistol_round(rng: Generator, state: Generator) -> list[Part]:
    """A straight-walled pistol cartridge with a blunt bullet, larger than real ones so that it stays visible."""
    width = rng.uniform(1.5, 2.0)
    return _cartridge(rng.uniform(2.8, 3.5), width, rng.uniform(1.4, 2.0), width * 0.92, 0.1)


def shotgun_shell(rng: Generator, state: Generator) -> list[Part]:
    """A plastic hull with a brass base, packed with lead shot."""
    length, width = rng.uniform(5, 6.5), rng.uniform(1.8, 2.3)
    parts = [
        Part("plastic", rectangle(0, -width / 2, length, width / 2), width, rounded(width / 2)),
        Part("brass", rectangle(-0.2, -width * 0.54, length * 0.28, width * 0.54), 0.25),
    ]
    columns, rows = np.arange(length * 0.45, length * 0.92, 0.55), np.arange(-width / 2 + 0.3, width / 2 - 0.1, 0.5)
    shot = itertools.product(columns, rows)
    parts += [Part("lead", ellipse(x, y, 0.27, points=10), 0.25, rounded(0.27)) for x, y in shot]
    return Placement(-length / 2).parts(parts)


def _cuff(state: Generator, radius: float) -> list[Part]:
    """One cuff around the origin: a double cheek with the lock and a toothed arm that swings out of it."""
    gap, swing = state.uniform(0, 40), state.uniform(-25, 15)
    cheek = band(arc(0, 0, radius, 70, 290), 1.15)
    arm = band(arc(0.3, 0, radius, 290 + swing, 430 - gap), 0.75)
    teeth = [
        Part("steel", ellipse(0.3 + (radius - 0.55) * np.cos(a), (radius - 0.55) * np.sin(a), 0.2, points=6), 0.3)
        for a in np.radians(np.arange(-65 + swing, 5, 9))
    ]
    lock = Placement(0, radius).parts([Part("steel", rounded_rectangle(3.4, 1.9, 0.6), 0.35)])
    return [Part("steel", cheek, 0.22, rounded(0.25)), Part("steel", arm, 0.3, rounded(0.25)), *teeth, *lock]


def _handcuffs(rng: Generator, state: Generator, spread: float, link: list[Part]) -> list[Part]:
    radius, fold = rng.uniform(3.3, 4.0), state.uniform(-55, 55)
    left = Placement(-spread / 2 - radius, 0, 90 + state.uniform(-20, 20)).parts(_cuff(state, radius))
    right = Placement(spread / 2 + radius, 0, -90 + fold / 2, mirror=True).parts(_cuff(state, radius))
    return left + link + right


def chain_handcuffs(rng: Generator, state: Generator) -> list[Part]:
    """Two cuffs on a short chain."""
    spread = rng.uniform(1.8, 3.2)
    centres = np.linspace(-spread / 2, spread / 2, 3)
    links = [wire("steel", ellipse(x, 0, 0.8, 0.5, 14), 0.5, 0.35) for x in centres]
    return _handcuffs(rng, state, spread, links)


def hinged_handcuffs(rng: Generator, state: Generator) -> list[Part]:
    """Two cuffs on a rigid hinge."""
    spread = rng.uniform(1.0, 1.8)
    plate = Part("steel", rectangle(-spread / 2 - 0.5, -1.7, spread / 2 + 0.5, 1.7), 0.25)
    pins = [Part("steel", rectangle(x - 0.15, -1.9, x + 0.15, 1.9), 0.5) for x in (-spread / 3, spread / 3)]
    return _handcuffs(rng, state, spread, [plate, *pins])


def kitchen_knife(rng: Generator, state: Generator) -> list[Part]:
    """A pointed blade with a full tang between two riveted scales."""
    blade, handle, width = rng.uniform(10, 13), rng.uniform(7.5, 9.5), rng.uniform(2.0, 3.6)
    edge = smooth([(blade, -width * 0.5), (blade * 0.75, width * 0.2), (blade * 0.3, width * 0.5)], 2, False)
    outline = np.concatenate([[(0, width * 0.5), (0, -width * 0.5)], edge])
    grip = smooth([(-handle, -1.3), (-handle, 1.5), (-handle * 0.6, 0.8), (0, 0.9), (0.2, -1.0)], 2)
    parts = [
        Part("steel", outline, rng.uniform(0.13, 0.2), rounded(1.2)),
        Part("steel", rectangle(-handle * 0.95, -0.6, 0.4, 0.5), 0.14),
        Part("plastic" if rng.random() < 0.6 else "paper", grip, 1.6, rounded(0.8)),
    ]
    parts += [Part("brass", ellipse(-handle * share, 0, 0.3, points=12), 0.5) for share in (0.2, 0.5, 0.8)]
    return Placement((handle - blade) / 2).parts(parts)


def folding_knife(rng: Generator, state: Generator) -> list[Part]:
    """A pocket knife, its blade opened to some angle, with steel liners and a spring in the handle."""
    blade, handle, width = rng.uniform(6.5, 8.5), rng.uniform(8.5, 10.5), rng.uniform(1.8, 2.4)
    outline = np.array([(0, -0.5), (0.7, -0.5), (1, 0), (0.6, 0.5), (0, 0.5)]) * (blade, width)
    belly, end = [(-handle * 0.5, 1.5), (-handle, 1.2)], [(-handle, -0.6), (-handle * 0.5, -0.9)]
    grip = smooth([(0.8, -1.1), (0.8, 1.1), *belly, *end])
    return [
        *Placement(angle_deg=state.uniform(-70, 10)).parts([Part("steel", smooth(outline, 1), 0.2, rounded(1.0))]),
        Part("plastic" if rng.random() < 0.7 else "aluminium", grip, 1.0, rounded(0.7)),
        Part("steel", grip * 0.9, 0.08),
        Part("steel", rectangle(-handle * 0.9, -0.6, -0.5, -0.2), 0.3),
        Part("steel", ellipse(0, 0, 0.5, points=14), 0.8),
        Part("steel", ellipse(-handle * 0.85, 0.2, 0.3, points=12), 0.8),
    ]


def cleaver(rng: Generator, state: Generator) -> list[Part]:
    """A broad rectangular blade with a hole, on a short handle."""
    blade, handle, width = rng.uniform(9, 12), rng.uniform(7, 9), rng.uniform(4.5, 6.5)
    outline = rounded_rectangle(blade, width, rng.uniform(0.2, 1.0), blade / 2, width * 0.2)
    grip = smooth([(-handle, -1.4), (-handle, 1.2), (-handle * 0.5, 0.7), (0.2, 0.9), (0.2, -1.0)], 2)
    parts = [
        Part("steel", outline, rng.uniform(0.12, 0.2), holes=(ellipse(blade - 1.2, -width * 0.1, 0.45),)),
        Part("steel", rectangle(-handle * 0.9, -0.5, 0.4, 0.4), 0.15),
        Part("paper" if rng.random() < 0.5 else "plastic", grip, 1.8, rounded(0.9)),
    ]
    return Placement((handle - blade) / 2).parts(parts)
