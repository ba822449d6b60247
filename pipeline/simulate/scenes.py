"""Scenes: packed bags on a belt, by each subset's recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.simulate.bags import Bag, make_bag
from pipeline.simulate.clutter import draw_things, folds
from pipeline.simulate.concealment import COVERS, STEEP
from pipeline.simulate.items import make_item
from pipeline.simulate.outlines import rounded_rectangle
from pipeline.simulate.parts import Part, Placement, extent
from pipeline.simulate.pose import lean
from pipeline.simulate.raster import draw, empty_maps
from pipeline.simulate.scanner import Scanner

Generator = np.random.Generator
Wanted = Sequence[tuple[str, int]]  # class and brand of each item

# Range of the errors of detector elements; large ones make rows visible in some scans.
LINE_ERRORS = (0.001, 0.015)
# Height over width of scans that are not cropped to their bags.
UNCUT_ASPECT = 0.6
# Thickness of the coating on coated cloth, relative to the thickness of all cloth.
COATING = 0.08


@dataclasses.dataclass(frozen=True)
class Machine:
    """A type of scanner, and how bags leave it. The values were chosen so that its pictures look like real ones.

    Attributes:
        photons: minimum and maximum of `Scanner.photons`.
        blur_px: minimum and maximum of `Scanner.blur_px`.
        sharpening: minimum and maximum of `Scanner.sharpening`.
        suitcases: share of the bags that are suitcases.
        upright: probability that a bag's longer side lies across the belt.
        cut: whether its pictures are cropped to the bags.
    """

    photons: tuple[float, float]
    blur_px: tuple[float, float]
    sharpening: tuple[float, float]
    suitcases: float
    upright: float
    cut: bool = True


# By palette name.
MACHINES = {
    "white": Machine((1800, 6000), (0.35, 0.6), (2.0, 3.3), 0.7, 0.85),
    "pale": Machine((800, 2500), (0.35, 0.6), (1.3, 2.5), 0.25, 0.06),
    "grey": Machine((280, 560), (0.75, 1.0), (0.8, 1.3), 0.4, 0.3, cut=False),
}


@dataclasses.dataclass(frozen=True)
class SceneRecipe:
    """How the bags of one subset are packed.

    Attributes:
        things: fewest and most harmless things per bag.
        filling_cm: minimum and maximum thickness of the cloth that fills the whole bag.
        second_item: probability of a second item; a third follows with half this probability.
        concealed: whether a cover hides the item on purpose.
        second_bag: probability of a second bag in the picture.
        machine: name in `MACHINES`.
        grey_belts: whether scans of the grey-belt machine occur.
    """

    things: tuple[int, int]
    filling_cm: tuple[float, float]
    second_item: float = 0.0
    concealed: bool = False
    second_bag: float = 0.1
    machine: str = "pale"
    grey_belts: bool = False


@dataclasses.dataclass(frozen=True)
class Item:
    """A prohibited item.

    Attributes:
        name: its class.
        brand: number of the product, see `items.BRANDS`.
        parts: its parts, in cm.
    """

    name: str
    brand: int
    parts: list[Part]


@dataclasses.dataclass(frozen=True)
class Scene:
    """A packed scene, ready for the scanner.

    Attributes:
        size: (width, height) of the scan in pixels.
        px_per_cm: its resolution.
        belongings: bags and harmless things, in cm from the scan's top left corner.
        items: prohibited items, in the same coordinates.
        scanner: the machine's setting.
    """

    size: tuple[int, int]
    px_per_cm: float
    belongings: list[Part]
    items: list[Item]
    scanner: Scanner

    def maps(self, with_items: bool = True) -> np.ndarray:
        """Thickness of every material, float32 [materials, height, width] in cm."""
        maps = empty_maps(*self.size)
        draw(maps, self.belongings, self.px_per_cm)
        if with_items:
            for item in self.items:
                draw(maps, item.parts, self.px_per_cm)
        return maps


def compose(rng: Generator, recipe: SceneRecipe, wanted: Wanted, width_px: int, grey_share: float) -> Scene:
    """Pack a scene.

    Args:
        rng: generator of all random choices.
        recipe: how to pack.
        wanted: class and brand of the prohibited items; they go into the first bag.
        width_px: width of the scan.
        grey_share: probability of a grey belt, if the recipe allows grey belts.
    """
    name = "grey" if recipe.grey_belts and rng.random() < grey_share else recipe.machine
    machine = MACHINES[name]
    count = int(rng.integers(2, 4)) if not machine.cut else 1 + int(rng.random() < recipe.second_bag)
    bags = [make_bag(rng, machine.suitcases) for _ in range(count)]
    spots, frame = _lay_out(rng, bags, machine)
    belongings: list[Part] = []
    items: list[Item] = []
    for number, (bag, spot) in enumerate(zip(bags, spots, strict=True)):
        packed, smuggled = _pack(rng, bag, recipe, wanted if number == 0 else (), frame[0])
        belongings += spot.parts(packed)
        items += [dataclasses.replace(item, parts=spot.parts(item.parts)) for item in smuggled]
    px_per_cm = width_px / frame[0]
    size = (width_px, round(frame[1] * px_per_cm))
    scanner = Scanner(
        photons=float(np.exp(rng.uniform(*np.log(machine.photons)))),
        blur_px=rng.uniform(*machine.blur_px),
        line_error=float(np.exp(rng.uniform(*np.log(LINE_ERRORS)))),
        palette=name,
        sharpening=rng.uniform(*machine.sharpening),
    )
    return Scene(size, px_per_cm, belongings, items, scanner)


def _lay_out(rng: Generator, bags: list[Bag], machine: Machine) -> tuple[list[Placement], tuple[float, float]]:
    """Turn the bags, place them side by side and frame them: placements, and (width, height) of the frame in cm.

    The first bag is whole, except for its rim. The frame may cut the last of several bags.
    """
    spots, starts, ends, tallest = [], [], [], 0.0
    edge = float(rng.uniform(-0.6, 0.1) if machine.cut else rng.uniform(6, 30))
    for bag in bags:
        lies = (bag.size_cm[1] > bag.size_cm[0]) != (rng.random() < machine.upright)
        angle = float(rng.normal(0, 6 if rng.random() < 0.7 else 28) + 90 * lies + 180 * rng.integers(2))
        low, high = extent(bag.parts, angle)
        spots.append(Placement(edge - float(low[0]), -float(low[1] + high[1]) / 2, angle))
        starts.append(edge)
        ends.append(edge + float(high[0] - low[0]))
        edge = ends[-1] + rng.uniform(0, 5 if machine.cut else 25)
        tallest = max(tallest, float(high[1] - low[1]))
    width = ends[-1] + (rng.uniform(-0.6, 0.1) if machine.cut else rng.uniform(0.5, 4))
    if len(bags) > 1 and rng.random() < 0.6:
        width = starts[-1] + (ends[-1] - starts[-1]) * rng.uniform(0.3, 0.9)
    if machine.cut:
        above, below = rng.uniform(-0.4, 2.5, 2) * (rng.random(2) < 0.3)
        height = tallest + above + below - 0.3
    else:
        width = max(width, tallest / UNCUT_ASPECT)
        height, above, below = width * UNCUT_ASPECT, 0.0, 0.0
    middle = (height + above - below) / 2
    return [dataclasses.replace(spot, y=spot.y + middle) for spot in spots], (width, height)


def _pack(
    rng: Generator, bag: Bag, recipe: SceneRecipe, wanted: Wanted, frame_cm: float
) -> tuple[list[Part], list[Item]]:
    """Fill a bag. Return its own parts with the harmless things, and separately the prohibited items."""
    packed = [*bag.parts, *(_filling(rng, bag, recipe) if bag.lined else [])]
    for thing in draw_things(rng, int(rng.integers(recipe.things[0], recipe.things[1] + 1))):
        packed += _kept_inside(bag, _somewhere(rng, bag, thing).parts(thing))
    items: list[Item] = []
    taken: list[np.ndarray] = []
    for name, brand in wanted:
        flat = make_item(name, brand, rng, frame_cm)
        cover = COVERS[rng.integers(len(COVERS))] if recipe.concealed else None
        parts = lean(rng, flat, steep=cover in STEEP)
        spot = _apart(rng, bag, parts, taken)
        taken.append(np.array([spot.x, spot.y]))
        items.append(Item(name, brand, spot.parts(parts)))
        if cover:
            span = float(np.ptp(extent(flat), axis=0).max())
            packed += _kept_inside(bag, Placement(spot.x, spot.y).parts(cover(rng, span)))
    return packed, items


def _filling(rng: Generator, bag: Bag, recipe: SceneRecipe) -> list[Part]:
    """Cloth all over the bag, in coarse to fine folds that thin out at its sides, and coated cloth in some places.

    The PVC coating stands for materials that are neither pure cellulose nor metal: coats, leather, salty food.
    """
    slope = np.minimum(np.minimum(np.arange(48), np.arange(48)[::-1]) / rng.uniform(2, 6), 1)
    side = np.sqrt(np.outer(slope, slope)).astype(np.float32)
    outline = rounded_rectangle(bag.size_cm[0] * 1.03, bag.size_cm[1] * 1.03, rng.uniform(5, 10))
    thickness = rng.uniform(*recipe.filling_cm)
    layers = ((0.35, 6, 1.0), (0.4, 13, 1.0), (0.25, 48, 1.1))
    cloth = sum(share * _stretched(folds(rng, cells, cells, depth)) for share, cells, depth in layers)
    coated = np.maximum(_stretched(folds(rng, 5, 5, 1.0)) - rng.uniform(0, 1.5), 0)
    return [
        Part("cloth", outline, thickness, texture=cloth * side),
        Part("pvc", outline, thickness * COATING, texture=coated * side),
    ]


def _stretched(grid: np.ndarray) -> np.ndarray:
    """Enlarge a coarse texture to 48 x 48 cells."""
    return np.asarray(cv2.resize(grid, (48, 48), interpolation=cv2.INTER_CUBIC))


def _somewhere(rng: Generator, bag: Bag, parts: list[Part]) -> Placement:
    """Draw a rotation and a position that keep `parts` inside the bag, if they fit."""
    angle = rng.uniform(0, 360)
    low, high = extent(parts, angle)
    half = np.array(bag.size_cm) / 2
    # The square root of a uniform number favours the sides: many things already fit only near the middle.
    reach = np.maximum((half * 2 - (high - low)) / 2, 0) * np.sqrt(rng.random(2)) * rng.choice([-1, 1], 2)
    x, y = reach - (low + high) / 2
    return Placement(float(x), float(y), angle)


def _kept_inside(bag: Bag, parts: list[Part]) -> list[Part]:
    """Move parts back into the bag, and shrink them if they are too large for it."""
    low, high = extent(parts)
    scale = min(1.0, float((np.array(bag.size_cm) / (high - low)).min()))
    half = np.array(bag.size_cm) / 2
    low, high = low * scale, high * scale
    x, y = np.maximum(-half - low, 0) - np.maximum(high - half, 0)
    return parts if (x, y, scale) == (0, 0, 1) else Placement(float(x), float(y), scale=scale).parts(parts)


def _apart(rng: Generator, bag: Bag, parts: list[Part], taken: list[np.ndarray]) -> Placement:
    """Draw a few positions and return the one farthest from `taken`: items may touch but are not stacked on purpose."""
    spots = [_somewhere(rng, bag, parts) for _ in range(6 if taken else 1)]
    gaps = [min((float(np.hypot(spot.x - x, spot.y - y)) for x, y in taken), default=0.0) for spot in spots]
    return spots[int(np.argmax(gaps))]
