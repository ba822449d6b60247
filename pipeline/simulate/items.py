"""The twelve prohibited classes of PIDray, in its order and spelling, with the models and brands of each class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.simulate import items_containers as containers
from pipeline.simulate import items_tools as tools
from pipeline.simulate import items_weapons as weapons
from pipeline.simulate.parts import Part, Placement, extent

Model = Callable[[np.random.Generator, np.random.Generator], list[Part]]

ITEMS: dict[str, tuple[Model, ...]] = {
    "Baton": (weapons.telescopic_baton, weapons.rubber_baton),
    "Pliers": (tools.combination_pliers, tools.needle_nose_pliers, tools.water_pump_pliers),
    "Hammer": (tools.claw_hammer, tools.ball_hammer, tools.mallet),
    "Powerbank": (containers.cell_power_bank, containers.pouch_power_bank, containers.stick_power_bank),
    "Scissors": (tools.household_scissors, tools.steel_scissors),
    "Wrench": (tools.combination_wrench, tools.open_ended_wrench, tools.adjustable_wrench),
    "Gun": (weapons.pistol, weapons.revolver),
    "Bullet": (weapons.rifle_round, weapons.pistol_round, weapons.shotgun_shell),
    "Sprayer": (containers.aerosol_can, containers.pepper_spray, containers.pump_sprayer),
    "HandCuffs": (weapons.chain_handcuffs, weapons.hinged_handcuffs),
    "Knife": (weapons.kitchen_knife, weapons.folding_knife, weapons.cleaver),
    "Lighter": (containers.disposable_lighter, containers.flip_lighter, containers.torch_lighter),
}
CLASSES = tuple(ITEMS)

# A brand is one product. Its shape depends only on its class and number, not on the seed of the data set. Brand numbers
# of training and test scans, per class. As in PIDray, whose authors packed the same items into many bags, items recur,
# but there are enough brands that two items of a class are seldom the same product. Brands are drawn from continuous
# ranges, so test brands lie between and beside training brands.
BRANDS = {"train": range(60), "test": range(60, 120)}


def make_item(name: str, brand: int, rng: np.random.Generator, frame_cm: float) -> list[Part]:
    """Make one item of class `name`, possibly mirrored, with its box centred on the origin.

    Args:
        name: one of `CLASSES`.
        brand: number of the product, 0 or more; number modulo the number of models selects the model.
        rng: generator of the differences between items of one brand: opening angle, fill level.
        frame_cm: width of the scan. A small bag fills its scan, so an item is scaled until it spans 8.5 to 34 % of the
            width; within these bounds the classes keep their true sizes.
    """
    models = ITEMS[name]
    parts = models[brand % len(models)](np.random.default_rng([CLASSES.index(name), brand]), rng)
    low, high = extent(parts)
    span = float(max(high - low))
    scale = np.clip(span, 0.085 * frame_cm, 0.34 * frame_cm) / span
    centre = (low + high) / 2
    parts = Placement(-centre[0], -centre[1]).parts(parts)
    return Placement(scale=float(scale), mirror=bool(rng.random() < 0.5)).parts(parts)
