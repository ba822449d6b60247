"""Parts: outlines filled with a thickness of one material. Objects, bags and scenes are lists of parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from pipeline.simulate.outlines import Outline, looped


@dataclasses.dataclass(frozen=True)
class Profile:
    """Thickness relative to `Part.thickness_cm` as a function of the distance to the part's edge.

    Attributes:
        relative: function of distances in cm.
        depth_cm: depth of the part along the beam, where that differs from its thickness, as in a hollow body.
        squeeze: the profile is compressed to this share of its width.
    """

    relative: Callable[[np.ndarray], np.ndarray]
    depth_cm: float | None = None
    squeeze: float = 1.0

    def __call__(self, edge_cm: np.ndarray) -> np.ndarray:
        """Relative thickness at these distances from the edge."""
        return self.relative(edge_cm / self.squeeze)


class Part(NamedTuple):
    """A body of one material as the beam sees it.

    Attributes:
        material: name in `materials.MATERIALS`.
        outline: closed curve [n, 2] in cm, or the open path of a line.
        thickness_cm: thickness along the beam.
        profile: thickness as a function of the distance to the edge; None is flat.
        line_cm: width of the line along `outline`; 0 fills the outline instead.
        holes: closed curves inside `outline` that stay empty.
        texture: relative thickness [rows, columns] stretched over the part's bounding box; None is uniform.
    """

    material: str
    outline: Outline
    thickness_cm: float
    profile: Profile | None = None
    line_cm: float = 0.0
    holes: tuple[Outline, ...] = ()
    texture: np.ndarray | None = None


def wire(material: str, outline: Outline, thickness_cm: float, line_cm: float) -> Part:
    """A line of one material along a closed outline."""
    return Part(material, looped(outline), thickness_cm, line_cm=line_cm)


def rounded(radius_cm: float) -> Profile:
    """A solid whose edge is rounded to `radius_cm`; a cylinder when that is half its width."""

    def profile(edge_cm: np.ndarray) -> np.ndarray:
        to_axis = 1 - np.minimum(edge_cm / radius_cm, 1)
        return np.sqrt(1 - to_axis * to_axis)

    return Profile(profile)


def tube(radius_cm: float, wall_cm: float) -> Profile:
    """A hollow body of this radius and wall: bright rim, faint middle. `Part.thickness_cm` is the wall."""

    def profile(edge_cm: np.ndarray) -> np.ndarray:
        from_axis = np.maximum(radius_cm - edge_cm, 0) ** 2
        outer = np.sqrt(np.maximum(radius_cm**2 - from_axis, 0))
        inner = np.sqrt(np.maximum((radius_cm - wall_cm) ** 2 - from_axis, 0))
        return 2 * (outer - inner) / wall_cm

    return Profile(profile, depth_cm=2 * radius_cm)


def rim(width_cm: float, floor: float) -> Profile:
    """Full thickness within `width_cm` of the edge, `floor` times that inside."""
    return Profile(lambda edge_cm: np.where(edge_cm < width_cm, 1.0, floor))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a list of parts goes: scaled, mirrored, rotated by `angle_deg` (clockwise), then moved to (x, y) in cm."""

    x: float = 0.0
    y: float = 0.0
    angle_deg: float = 0.0
    scale: float = 1.0
    mirror: bool = False

    @classmethod
    def near(cls, rng: np.random.Generator, spread_cm: float, most_deg: float = 360.0) -> Placement:
        """A random place about `spread_cm` from the origin, turned by up to `most_deg` either way."""
        x, y = rng.normal(0, spread_cm, 2)
        return cls(float(x), float(y), float(rng.uniform(-most_deg, most_deg)))

    def parts(self, parts: Iterable[Part]) -> list[Part]:
        """Place every part. Thickness and profiles do not scale: a longer gun is not thicker."""
        parts = list(parts)
        if not parts:
            return []
        turn = _rotation(self.angle_deg) * self.scale
        if self.mirror:
            turn[0] = -turn[0]
        # All curves in one product: most have a dozen points, and a NumPy call costs more than moving them.
        moved = np.concatenate([curve for part in parts for curve in (part.outline, *part.holes)])
        moved = moved @ turn + (self.x, self.y)
        placed, start = [], 0
        for part in parts:
            curves = []
            for curve in (part.outline, *part.holes):
                curves.append(moved[start : start + len(curve)])
                start += len(curve)
            outline, *holes = curves
            placed.append(part._replace(outline=outline, holes=tuple(holes), line_cm=part.line_cm * self.scale))
        return placed


def _rotation(angle_deg: float) -> np.ndarray:
    sine, cosine = np.sin(np.radians(angle_deg)), np.cos(np.radians(angle_deg))
    return np.array([(cosine, sine), (-sine, cosine)])


def extent(parts: Iterable[Part], angle_deg: float = 0) -> np.ndarray:
    """Bounding box of all outlines, turned by an angle (clockwise) first: [[x0, y0], [x1, y1]] in cm."""
    points = np.concatenate([part.outline for part in parts]) @ _rotation(angle_deg)
    return np.stack([points.min(0), points.max(0)])
