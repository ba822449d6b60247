"""Ways to hide an item: covers laid over it or wound around it, some with the item tilted upright.

Each function returns a cover as parts in cm around the item's centre, for an item `span` cm long.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.simulate.clutter import cable, circuit, coins, folds, gadget, hardware, keys, laptop, tin, umbrella
from pipeline.simulate.outlines import rounded_rectangle, wander
from pipeline.simulate.parts import Part, Placement

Generator = np.random.Generator


def under_laptop(rng: Generator, span: float) -> list[Part]:
    """Under a computer; its circuit board covers the item."""
    covers = Placement(angle_deg=rng.uniform(0, 360)).parts(circuit(rng, span * 1.3, span * 1.2, 0.5))
    return Placement.near(rng, 1.5, 30).parts(laptop(rng)) + covers


def behind_plate(rng: Generator, span: float) -> list[Part]:
    """Behind a metal sheet larger than the item."""
    material, thickness = [("steel", 0.16), ("copper", 0.1), ("aluminium", 1.6), ("lead", 0.024)][rng.integers(4)]
    outline = rounded_rectangle(span * rng.uniform(1.0, 1.4), span * rng.uniform(1.0, 1.4), 0.5)
    return Placement.near(rng, span * 0.08).parts([Part(material, outline, thickness * rng.uniform(0.8, 1.3))])


def wound_in_wire(rng: Generator, span: float) -> list[Part]:
    """Inside a tangle of metal wire."""
    return [
        Part(str(rng.choice(["steel", "copper"])), wander(rng, span * 1.3, 9), rng.uniform(0.06, 0.16), line_cm=0.28)
        for _ in range(9)
    ]


def wrapped_in_foil(rng: Generator, span: float) -> list[Part]:
    """Rolled into crumpled metal foil."""
    material, thickness = [("aluminium", 1.0), ("lead", 0.018), ("copper", 0.07)][rng.integers(3)]
    outline = rounded_rectangle(span * rng.uniform(1.05, 1.3), span * rng.uniform(0.7, 1.1), span * 0.2)
    crumples = folds(rng, 12, 16, 0.35)
    return [Part(material, outline, thickness, texture=crumples)]


def among_metal(rng: Generator, span: float) -> list[Part]:
    """In a heap of tins, an umbrella, boards and small metal things."""
    heap = [tin(rng), tin(rng), umbrella(rng), circuit(rng, span, span * 0.7, 0.4), hardware(rng), hardware(rng)]
    return [part for thing in heap for part in Placement.near(rng, span * 0.22).parts(thing)]


def strewn_over(rng: Generator, span: float) -> list[Part]:
    """Among the small things at the bottom of a bag."""
    heap = [hardware(rng), coins(rng), keys(rng), cable(rng), gadget(rng)]
    return [part for thing in heap for part in Placement.near(rng, span * 0.2).parts(thing)]


Cover = Callable[[Generator, float], list[Part]]  # generator and the item's length in cm

COVERS: tuple[Cover, ...] = (under_laptop, behind_plate, wound_in_wire, wrapped_in_foil, among_metal, strewn_over)
# Covers whose items also point at the beam, so that their outlines are foreshortened.
STEEP = frozenset({strewn_over})
