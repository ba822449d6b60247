"""Pose in space: things that lean on others instead of lying flat on the belt.

Every part is modelled as a body with an elliptic cross-section along the direction of the tilt, as wide as its outline
and as deep as its thickness. The shadow of such a body is exact: an ellipse of axes w and t, turned by an angle a, is
sqrt(w² cos² a + t² sin² a) wide, and its mean thickness grows by the inverse factor, so its mass is constant. A thin
sheet shrinks to cos a of its width, a ball does not shrink.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.simulate.outlines import Outline
from pipeline.simulate.parts import Part, Profile

# Most things lie nearly flat: standard deviation of their tilt, and the maximum.
FLAT_DEG, FLATTEST_DEG = 10.0, 35.0
# Range of tilts of a thing that is placed upright on purpose.
STEEP_DEG = (50.0, 70.0)
# Minimum width of a part along the tilt.
NARROWEST_CM = 1e-3


def lean(rng: np.random.Generator, parts: list[Part], steep: bool = False) -> list[Part]:
    """Tilt a thing around the origin in a random direction, a little or, if `steep`, a lot."""
    angle = rng.uniform(*STEEP_DEG) if steep else min(abs(rng.normal(0, FLAT_DEG)), FLATTEST_DEG)
    return tilt(parts, float(angle), float(rng.uniform(0, 360)))


def tilt(parts: Iterable[Part], tilt_deg: float, towards_deg: float = 0.0) -> list[Part]:
    """Tilt a thing out of the plane of the belt.

    Args:
        parts: the thing, lying flat around the origin.
        tilt_deg: angle between the thing and the belt, 0 to 90 (exclusive); 0 changes nothing.
        towards_deg: direction in the plane, clockwise from the x axis, along which the thing gets shorter.
    """
    if tilt_deg == 0:
        return list(parts)
    along = np.array([np.cos(np.radians(towards_deg)), np.sin(np.radians(towards_deg))])
    return [_tilted(part, np.radians(tilt_deg), along) for part in parts]


def _tilted(part: Part, angle: float, along: np.ndarray) -> Part:
    cosine, sine = np.cos(angle), np.sin(angle)
    positions = part.outline @ along
    low, high = positions.min(), positions.max()
    width = max(high - low, part.line_cm, NARROWEST_CM)
    depth = part.thickness_cm
    if part.profile is not None and part.profile.depth_cm is not None:
        depth = part.profile.depth_cm
    factor = float(np.hypot(cosine, sine * depth / width))
    middle = (low + high) / 2

    def project(curve: Outline) -> Outline:
        return curve + np.outer((curve @ along - middle) * (factor - 1) + middle * (cosine - 1), along)

    outline = project(part.outline)
    before, after = _lengths(part.outline), _lengths(outline)
    if part.line_cm:  # its length changes, but not its width
        before, after = before[:-1].sum(), after[:-1].sum()
        thickness = part.thickness_cm * float(before / after)
        return part._replace(outline=outline, holes=(), thickness_cm=thickness)
    return part._replace(
        outline=outline,
        holes=tuple(project(hole) for hole in part.holes),
        thickness_cm=part.thickness_cm / factor,
        profile=part.profile and _squeezed(part.profile, factor, before, after),
    )


def _lengths(outline: Outline) -> np.ndarray:
    """Lengths of the edges of a closed outline; the last is the one that closes it."""
    x, y = (np.concatenate([outline[1:], outline[:1]]) - outline).T
    return np.hypot(x, y) + 1e-9


def _squeezed(profile: Profile, factor: float, before: np.ndarray, after: np.ndarray) -> Profile:
    """Compress the profile of a part whose area shrank by `factor`, with edge lengths `before` and `after`.

    Next to an edge of unchanged length, the part narrows by `factor`. Next to an edge that shrank with the area, its
    width stays. A profile has no direction, so the mean over the edges is used.
    """
    share = factor * float((before * before / after).sum() / before.sum())
    return Profile(profile.relative, profile.depth_cm, profile.squeeze * share)
