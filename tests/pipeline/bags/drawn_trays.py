"""Drawings of trays on a belt, rotated, oblique or cut by the frame like real ones, with the box of their contents."""

from dataclasses import dataclass

import cv2
import numpy as np

from segloc.common.contract import Box

SHAPE = (600, 800)
SIZE = (600, 440)  # of the tray's outline: width, height
CENTRE = (400, 300)


@dataclass(frozen=True)
class Tray:
    """Parameters of a drawing. Darkness is in grey levels below the belt, lengths in pixels of a scan of 800x600.

    Attributes:
        level: level of the belt.
        floor: darkness of the floor.
        wall: darkness of the walls minus that of the floor.
        thickness: thickness of the walls.
        walls: 2 draws the walls again further in.
        radius: radius of the corners.
        turn: rotation in degrees.
        skew: how much shorter the far side is than the near one.
        ribs: whether ribs run across floor and walls.
        at: offset from the scan's centre, x and y; with a large one, the frame cuts the tray.
        holds: contents: "bag", "items", "bag at wall", "bag over wall" or "".
    """

    level: int = 255
    floor: int = 8
    wall: int = 25
    thickness: int = 40
    walls: int = 1
    radius: int = 50
    turn: float = 0
    skew: float = 0
    ribs: bool = False
    at: tuple[int, int] = (0, 0)
    holds: str = "bag"


# Around the tray's centre, x0, y0, x1, y1 and darkness. The first of each is the outermost.
CONTENTS = {
    "": [],
    "bag": [(-190, -130, 160, 120, 30), (-120, -60, 60, 70, 60)],
    "items": [(-200, -120, -90, -80, 90), (60, 20, 190, 110, 70)],
    "bag at wall": [(-250, -130, 100, 110, 30), (-150, -60, 60, 70, 60)],
    "bag over wall": [(-290, -110, 60, 110, 110)],
}


def draw(tray: Tray, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, Box | None]:
    """Draw a tray, uint8 [600, 800], and return the box of its visible contents."""
    rng = np.random.default_rng(seed)
    height, width = SHAPE
    reach = 400  # parts outside the frame are drawn too
    dark = np.zeros((height + 2 * reach, width + 2 * reach), np.float32)
    held = np.zeros(dark.shape, np.uint8)
    centre = (CENTRE[0] + reach, CENTRE[1] + reach)
    _draw_walls(dark, tray, centre)
    for x0, y0, x1, y1, darkness in CONTENTS[tray.holds]:
        place = (slice(centre[1] + y0, centre[1] + y1), slice(centre[0] + x0, centre[0] + x1))
        dark[place] += darkness
        held[place] = 255
    matrix = _view(tray, centre, reach)
    dark = cv2.warpPerspective(dark, matrix, (width, height), flags=cv2.INTER_LINEAR)
    held = cv2.warpPerspective(held, matrix, (width, height), flags=cv2.INTER_NEAREST)
    grey = tray.level - cv2.GaussianBlur(dark, (3, 3), 0) + rng.normal(0, noise, SHAPE)
    x, y, columns, rows = cv2.boundingRect(held)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8), (x, y, x + columns, y + rows) if columns else None


def _draw_walls(dark: np.ndarray, tray: Tray, centre: tuple[int, int]) -> None:
    outline = _rounded(dark.shape, centre, SIZE, tray.radius)
    dark[outline] = tray.floor
    for number in range(tray.walls):
        less = 2 * number * (tray.thickness + 25)
        outer = _rounded(dark.shape, centre, (SIZE[0] - less, SIZE[1] - less), tray.radius)
        less += 2 * tray.thickness
        inner = _rounded(dark.shape, centre, (SIZE[0] - less, SIZE[1] - less), tray.radius)
        dark[outer & ~inner] += tray.wall
    if tray.ribs:
        lines = np.zeros(dark.shape, np.uint8)
        for x in range(-SIZE[0] // 2, SIZE[0] // 2, 60):
            cv2.line(lines, (centre[0] + x, centre[1] - 250), (centre[0] + x + 80, centre[1] + 250), 1, 2)
        dark[(lines > 0) & outline] += 12


def _rounded(shape: tuple[int, ...], centre: tuple[int, int], size: tuple[int, int], radius: int) -> np.ndarray:
    """A rectangle with round corners, bool [height, width]."""
    radius = min(radius, *(side // 2 for side in size))
    x, y = (middle - side // 2 for middle, side in zip(centre, size, strict=True))
    core = np.zeros(shape, np.uint8)
    core[y + radius : y + size[1] - radius, x + radius : x + size[0] - radius] = 1
    return cv2.distanceTransform(1 - core, cv2.DIST_L2, 5) <= radius


def _view(tray: Tray, centre: tuple[int, int], reach: int) -> np.ndarray:
    """The perspective map [3, 3] from an upright drawing of a tray to the scan."""
    w, h = SIZE[0] / 2, SIZE[1] / 2
    corners = np.array([(-w, -h), (w, -h), (w, h), (-w, h)])
    seen = corners * np.array([(1 - tray.skew, 1), (1 - tray.skew, 1), (1, 1), (1, 1)])
    turn = np.deg2rad(tray.turn)
    seen = seen @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    start, stop = corners + centre, seen + centre - reach + tray.at
    return cv2.getPerspectiveTransform(start.astype(np.float32), stop.astype(np.float32))
