"""Outlines: closed or open curves as float arrays [n, 2] of (x, y) in centimetres, x to the right, y down."""

from __future__ import annotations

import numpy as np

Outline = np.ndarray


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Outline:
    """Axis-parallel rectangle between two corners."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def rounded_rectangle(width: float, height: float, radius: float, x: float = 0, y: float = 0) -> Outline:
    """Rectangle centred on (x, y) with its corners rounded to `radius`."""
    radius = min(radius, width / 2, height / 2)
    arcs = []
    for turn, (sx, sy) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        angle = np.linspace(0, np.pi / 2, 5) + turn * np.pi / 2
        cx, cy = sx * (width / 2 - radius), sy * (height / 2 - radius)
        arcs.append(np.stack([cx + radius * np.cos(angle), cy + radius * np.sin(angle)], 1))
    return np.concatenate(arcs) + np.array((x, y))


def ellipse(x: float, y: float, radius_x: float, radius_y: float | None = None, points: int = 28) -> Outline:
    """Ellipse around (x, y); a circle when only one radius is given."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + radius_x * np.cos(angle), y + (radius_y or radius_x) * np.sin(angle)], 1)


def arc(x: float, y: float, radius: float, start_deg: float, end_deg: float, points: int = 20) -> Outline:
    """Open arc around (x, y); angles run clockwise from the x axis because y points down."""
    angle = np.radians(np.linspace(start_deg, end_deg, points))
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)


def band(path: Outline, widths: float | list[float]) -> Outline:
    """Closed outline around an open `path`, `widths` across at each of its points (or one width for all)."""
    path = np.asarray(path, float)
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1) * (np.broadcast_to(widths, len(path))[:, None] / 2)
    return np.concatenate([path + normal, (path - normal)[::-1]])


def smooth(points: Outline | list[tuple[float, float]], rounds: int = 2, closed: bool = True) -> Outline:
    """Cut the corners of a polygon or path `rounds` times (Chaikin's scheme)."""
    curve = np.asarray(points, float)
    for _ in range(rounds):
        ends = looped(curve) if closed else curve
        current, following = ends[:-1], ends[1:]
        cut = np.empty((2 * len(current), 2))
        cut[::2] = 0.75 * current + 0.25 * following
        cut[1::2] = 0.25 * current + 0.75 * following
        curve = cut if closed else np.concatenate([curve[:1], cut, curve[-1:]])
    return curve


def looped(outline: Outline) -> Outline:
    """The outline as a line that ends at its first point."""
    return np.concatenate([outline, outline[:1]])


def resample(outline: Outline, spacing: float) -> Outline:
    """Closed outline with a point about every `spacing` along it, so that bending one spot moves only nearby points."""
    line = looped(outline)
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    stops = np.linspace(0, along[-1], max(4, round(along[-1] / spacing)), endpoint=False)
    return np.stack([np.interp(stops, along, axis) for axis in line.T], 1)


def wander(rng: np.random.Generator, length: float, turns: int = 6) -> Outline:
    """A smooth random path about `length` across, like a loose cable or a fold."""
    return smooth(rng.uniform(-length / 2, length / 2, (turns, 2)), rounds=3, closed=False)
