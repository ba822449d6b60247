"""The scanner: thickness maps -> attenuation -> photons -> colours."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from pipeline.simulate.materials import LINEAR_ATTENUATION
from pipeline.simulate.palette import MAX_ATTENUATION, colourise

# Mean attenuation, averaged over 3 x 3 pixels, below which the machine shows an empty belt.
AIR = 0.025
# How strongly the machine sharpens edges for the eye, and over what distance.
SHARPENING, SHARPENING_PX = 0.7, 1.2


@dataclasses.dataclass(frozen=True)
class Scanner:
    """One setting of the machine.

    Attributes:
        photons: photons per pixel and energy that an empty belt lets through; fewer mean more noise.
        blur_px: standard deviation of the detector's blur.
        palette: name in `palette.PALETTES`.
    """

    photons: float = 8000.0
    blur_px: float = 0.5
    palette: str = "white"


def attenuation(maps: np.ndarray) -> np.ndarray:
    """Beer-Lambert exponents, sum of linear attenuation times thickness.

    Args:
        maps: thickness of every material in cm, float32 [materials, height, width].

    Returns:
        float32 [2 energies (low, high), height, width].
    """
    used = np.flatnonzero(maps.any(axis=(1, 2)))
    return np.tensordot(LINEAR_ATTENUATION[:, used], maps[used], axes=1)


def transmission(maps: np.ndarray) -> np.ndarray:
    """Share of the photons that pass: exp(-attenuation), float32 [2 energies, height, width]."""
    exponents = attenuation(maps)
    return np.exp(np.negative(exponents, out=exponents), out=exponents)


def detect(passed: np.ndarray, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Attenuation as the detector measures it from transmission `passed`: blurred and with photon noise.

    Photon counts are large where anything can be seen, so Poisson noise is taken as Gaussian of the same variance.
    """
    measured = np.stack([cv2.GaussianBlur(energy, (3, 3), scanner.blur_px) for energy in passed])
    noise = rng.standard_normal(measured.shape, np.float32)
    noise *= np.sqrt(measured)
    measured += noise * np.float32(scanner.photons**-0.5)
    np.maximum(measured, np.float32(np.exp(-MAX_ATTENUATION)), out=measured)
    return np.negative(np.log(measured, out=measured), out=measured)


def colours(measured: np.ndarray, palette: str = "white") -> np.ndarray:
    """Pseudo-colours of measured attenuation [2, height, width]: RGB uint8 [height, width, 3]."""
    low, high = measured
    mean = (low + high) / 2
    mean += SHARPENING * (mean - cv2.GaussianBlur(mean, (0, 0), SHARPENING_PX))
    mean[cv2.blur(mean, (3, 3)) < AIR] = 0
    # The ratio of two noisy numbers is noisier than their mean, and the eye forgives blurred hues.
    low, high = (cv2.blur(energy, (3, 3)) for energy in (low, high))
    ratio = low / np.maximum(high, np.float32(1e-3))
    return colourise(mean, ratio, palette)


def belt_marks(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flaws as on real scans, drawn in place: now and then faint dirt on the belt or a jagged last row."""
    height, width, _ = picture.shape
    if rng.random() < 0.25:
        rows, columns = rng.integers(0, height, 12), rng.integers(0, width, 12)
        picture[rows, columns] = np.minimum(picture[rows, columns], rng.integers(215, 250, (12, 3)))
    if rng.random() < 0.2:
        ends = np.sort(rng.integers(0, width, 8))
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            picture[height - rng.integers(1, 3) :, start:end] = np.minimum(
                picture[height - 1, start:end], rng.integers(215, 235)
            )
    return picture


def scan(maps: np.ndarray, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Take the picture of thickness `maps`: RGB uint8 [height, width, 3]."""
    return belt_marks(colours(detect(transmission(maps), scanner, rng), scanner.palette), rng)
