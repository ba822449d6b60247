"""The scanner: thickness maps -> attenuation -> photons -> colours."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from pipeline.simulate.materials import LINEAR_ATTENUATION
from pipeline.simulate.palette import MAX_ATTENUATION, colourise, table

# Mean attenuation, averaged over a window of `AIR_PX` x `AIR_PX` pixels, below which the machine shows an empty belt.
AIR, AIR_PX = 0.025, 7
# Distance over which the machine sharpens edges for the eye.
SHARPENING_PX = 1.2
# Side of the window over which hues are averaged.
HUE_PX = 3


@dataclasses.dataclass(frozen=True)
class Scanner:
    """One setting of the machine.

    Attributes:
        photons: photons per pixel and energy through an empty belt; fewer photons mean more noise.
        blur_px: standard deviation of the detector's blur.
        line_error: standard deviation of the gains of the detector's elements, relative. The belt runs along x, so one
            element records each row of a scan.
        palette: name in `palette.PALETTES`.
        sharpening: strength of the unsharp mask: multiple of the difference to the blurred image that is added.
    """

    photons: float = 8000.0
    blur_px: float = 0.5
    line_error: float = 0.0
    palette: str = "white"
    sharpening: float = 0.0


@dataclasses.dataclass(frozen=True)
class Scan:
    """Output of the machine.

    Attributes:
        picture: pseudo-colours, RGB uint8 [height, width, 3].
        attenuation: as the detector measured it, float32 [2 energies (low, high), height, width].
    """

    picture: np.ndarray
    attenuation: np.ndarray


def attenuation(maps: np.ndarray) -> np.ndarray:
    """Beer-Lambert exponents, sum of linear attenuation times thickness.

    Args:
        maps: thickness of every material in cm, float32 [materials, height, width].

    Returns:
        float32 [2 energies (low, high), height, width].
    """
    return np.tensordot(LINEAR_ATTENUATION, maps, axes=1)


def transmission(maps: np.ndarray) -> np.ndarray:
    """Share of the photons that pass: exp(-attenuation), float32 [2 energies, height, width]."""
    exponents = attenuation(maps)
    return np.exp(np.negative(exponents, out=exponents), out=exponents)


def detect(passed: np.ndarray, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Attenuation as the detector measures it from transmission `passed`: blurred, with photon and line noise.

    Photon counts are large wherever anything is visible, so Poisson noise is approximated by Gaussian noise of the same
    variance.
    """
    reach = 3 if scanner.blur_px < 0.65 else 5  # pixels; the outermost weigh less than 2 %
    measured = np.stack([cv2.GaussianBlur(energy, (reach, reach), scanner.blur_px) for energy in passed])
    noise = rng.standard_normal(measured.shape, np.float32)
    noise *= np.sqrt(measured)
    noise *= np.float32(scanner.photons**-0.5)
    measured += noise
    measured *= _gains(scanner, rng, measured.shape[1])
    np.maximum(measured, np.float32(np.exp(-MAX_ATTENUATION)), out=measured)
    return np.negative(np.log(measured, out=measured), out=measured)


def _gains(scanner: Scanner, rng: np.random.Generator, rows: int) -> np.ndarray:
    """Gains of the detector's elements, float32 [2, rows, 1]. In some scans a few neighbours have drifted far down."""
    errors = rng.normal(0, scanner.line_error, (2, rows))
    if rng.random() < 0.4:
        drifted = rng.normal(rng.uniform(0, rows), rows / 15, rng.integers(2, 14)).round().astype(int)
        drifted = drifted[(drifted >= 0) & (drifted < rows)]
        errors[:, drifted] -= np.abs(rng.normal(0, 6 * scanner.line_error, len(drifted)))
    return (1 + errors[:, :, None]).astype(np.float32)


def colours(measured: np.ndarray, palette: str = "white", sharpening: float = 0.0) -> np.ndarray:
    """Pseudo-colours of measured attenuation [2, height, width]: RGB uint8 [height, width, 3]."""
    low, high = measured
    mean = (low + high) / 2
    mean += np.float32(sharpening) * (mean - cv2.GaussianBlur(mean, (0, 0), SHARPENING_PX))
    mean[is_air(mean)] = 0
    return colourise(mean, attenuation_ratio(measured), palette)


def is_air(mean: np.ndarray) -> np.ndarray:
    """Where the machine shows an empty belt, from the mean of both attenuations: bool [height, width]."""
    return cv2.blur(mean, (AIR_PX, AIR_PX)) < AIR


def attenuation_ratio(measured: np.ndarray) -> np.ndarray:
    """Ratio of low to high attenuation, float32 [height, width], from measured attenuation [2, height, width].

    The ratio of two noisy numbers is noisier than their mean, so both are averaged over neighbours. The eye tolerates
    blurred hues.
    """
    low, high = (cv2.blur(energy, (HUE_PX, HUE_PX)) for energy in measured)
    return low / np.maximum(high, np.float32(1e-3))


def belt_lines(passed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a seam or an edge of the belt into some scans: a faint line along the scan, in transmissions, in place."""
    _, height, _ = passed.shape
    if rng.random() < 0.12:
        row = int(rng.integers(0, height)) if rng.random() < 0.3 else int(rng.choice([0, height - 1]))
        seam = passed[:, max(row - 2, 0) : row + int(rng.integers(1, 5))]
        seam *= np.exp(-rng.uniform(0.03, 0.1) * np.array([1.1, 0.9], np.float32))[:, None, None]
    return passed


def picture_marks(picture: np.ndarray, belt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw flaws of real scans in place: specks, and a last row that breaks off in dashes or in a comb."""
    height, width, _ = picture.shape
    if rng.random() < 0.25:
        rows, columns = rng.integers(0, height, 12), rng.integers(0, width, 12)
        picture[rows, columns] = np.minimum(picture[rows, columns], rng.integers(215, 250, (12, 3)))
    flaw = rng.random()
    if flaw < 0.2:
        ends = np.sort(rng.integers(0, width, 8))
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            dash = np.minimum(picture[height - 1, start:end], rng.integers(215, 235))
            picture[height - rng.integers(1, 3) :, start:end] = dash
    elif flaw < 0.5:
        picture[height - rng.integers(1, 4) :, rng.integers(2) :: 2] = belt
    return picture


def scan(maps: np.ndarray, scanner: Scanner, rng: np.random.Generator) -> Scan:
    """Scan thickness `maps`."""
    measured = detect(belt_lines(transmission(maps), rng), scanner, rng)
    picture = colours(measured, scanner.palette, scanner.sharpening)
    return Scan(picture_marks(picture, table(scanner.palette)[0, 0], rng), measured)
