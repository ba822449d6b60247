"""Statistics of scans, to compare simulated with real ones; see ``benchmarks/study/realism.py``."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from pipeline.bags import authentic_region
from pipeline.bags.belt import LEAST_CONTRAST, belt_noise
from segloc.common.images import Image, decode, encode_jpeg

JPEG_QUALITY = 95
# Minimum saturation (0..1) for a meaningful hue; hue ranges in degrees of the three pseudo-colours of X-ray scanners.
LEAST_SATURATION = 0.12
HUES = {"orange": (10, 65), "green": (65, 165), "blue": (165, 265)}
EDGE_LEVELS = 10.0
# Bins and their range. Grey in levels, hue in degrees, saturation from 0 (grey) to 1.
HISTOGRAMS: dict[str, tuple[int, float, float]] = {"grey": (64, 0, 256), "hue": (36, 0, 360), "saturation": (32, 0, 1)}
# Statistics with their units, in table order.
STATISTICS: dict[str, str] = {
    "aspect": "height over width of the frame",
    "region_share": "authentic region (adaptive), share of the frame",
    "matter_share": "darker than the belt by 5 levels, share of the region",
    "dark_share": "darker than 60, share of the region",
    "light_share": "matter lighter than 200, share of the region",
    "grey_mean": "mean grey level of matter",
    "contrast": "standard deviation of grey in the region, levels",
    "saturation_mean": "mean saturation of matter, 0 to 1",
    "orange_share": "hue 10 to 65 degrees, share of matter",
    "green_share": "hue 65 to 165 degrees, share of matter",
    "blue_share": "hue 165 to 265 degrees, share of matter",
    "neutral_share": "saturation below 0.12, share of matter",
    "edge_density": "slope above 10 levels a pixel, share of the region",
    "edge_density_quarter": "slope above 10 levels a pixel after reducing four times, share of the region",
    "texture": "median standard deviation of grey in 9x9 windows of matter, levels",
    "grain": "noise of matter where it is smooth, levels",
    "colour_grain": "noise of half the difference of red and blue there, levels",
    "spectrum_slope": "of log power over log frequency in the region",
    "belt_level": "grey level of the empty belt",
    "belt_noise": "noise of the empty belt, levels",
    "belt_dirt": "darker than the belt by 5 levels, share of what lies outside the region",
}


@dataclasses.dataclass(frozen=True)
class ScanStatistics:
    """Statistics of one scan.

    Attributes:
        values: by the names of `STATISTICS`; NaN if undefined (no belt outside the region).
        histograms: by the names of `HISTOGRAMS`, shares that sum to 1; grey over the region, the others over matter.
    """

    values: dict[str, float]
    histograms: dict[str, np.ndarray]


def prepare(scan: Image, width: int) -> Image:
    """Downscale a scan [h, w, 3] to a width by area averaging and JPEG-code it, in the same way for every source.

    Every scan must be wider than `width`; otherwise missing resampling would separate the sources.
    """
    height = max(1, round(scan.shape[0] * width / scan.shape[1]))
    smaller = np.asarray(cv2.resize(scan, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return decode(encode_jpeg(smaller, JPEG_QUALITY))


def measure(scan: Image) -> ScanStatistics | None:
    """Measure a prepared scan, RGB uint8 [height, width, 3]; None if it shows only belt."""
    grey = np.asarray(cv2.cvtColor(scan, cv2.COLOR_RGB2GRAY), np.uint8)
    box, level = authentic_region.adaptive(grey)
    if box is None:
        return None
    x0, y0, x1, y1 = box
    inside = grey[y0:y1, x0:x1]
    matter = inside < level - LEAST_CONTRAST
    if not matter.any():
        return None
    hsv = cv2.cvtColor(scan[y0:y1, x0:x1].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hue, saturation = hsv[..., 0][matter], hsv[..., 1][matter]  # degrees, and 0 to 1
    coloured = saturation >= LEAST_SATURATION
    quarter = max(1, inside.shape[1] // 4), max(1, inside.shape[0] // 4)
    reduced = np.asarray(cv2.resize(inside, quarter, interpolation=cv2.INTER_AREA), np.uint8)
    outside = np.ones(grey.shape, bool)
    outside[y0:y1, x0:x1] = False
    values = {
        "aspect": grey.shape[0] / grey.shape[1],
        "region_share": inside.size / grey.size,
        "matter_share": matter.mean(),
        "dark_share": (inside < 60).mean(),
        "light_share": (matter & (inside > 200)).mean(),
        "grey_mean": inside[matter].mean(),
        "contrast": inside.std(),
        "saturation_mean": saturation.mean(),
        **{f"{name}_share": (coloured & (low <= hue) & (hue < high)).mean() for name, (low, high) in HUES.items()},
        "neutral_share": 1 - coloured.mean(),
        "edge_density": edge_density(inside),
        "edge_density_quarter": edge_density(reduced),
        "texture": texture(inside, matter),
        "grain": grain(inside, matter),
        "colour_grain": grain(red_less_blue(scan[y0:y1, x0:x1]), matter),
        "spectrum_slope": spectrum_slope(inside),
        "belt_level": level,
        "belt_noise": belt_noise(grey, level),
        "belt_dirt": (grey[outside] < level - LEAST_CONTRAST).mean() if outside.any() else np.nan,
    }
    histograms = {
        "grey": _histogram("grey", inside),
        "hue": _histogram("hue", hue[coloured]),
        "saturation": _histogram("saturation", saturation),
    }
    return ScanStatistics({name: float(values[name]) for name in STATISTICS}, histograms)


def red_less_blue(scan: Image) -> Image:
    """Return 128 plus half the difference of red and blue, uint8 [h, w]: orange is light, blue is dark."""
    return np.asarray((scan[..., 0].astype(np.int16) - scan[..., 2] + 256) // 2, np.uint8)


def slope(grey: Image) -> np.ndarray:
    """Compute the slope of the grey level with Sobel's filter, float32 [h, w] in levels per pixel."""
    x, y = (cv2.Sobel(grey, cv2.CV_32F, *axis, ksize=3, scale=1 / 8) for axis in ((1, 0), (0, 1)))
    return np.asarray(cv2.magnitude(x, y))


def edge_density(grey: Image) -> float:
    """Compute the share of pixels with a slope above `EDGE_LEVELS` per pixel."""
    return float((slope(grey) > EDGE_LEVELS).mean())


def texture(grey: Image, matter: np.ndarray) -> float:
    """Compute the median over matter of the standard deviation in the 9x9 window of each pixel, in levels."""
    values = grey.astype(np.float32)
    mean, square = (cv2.blur(image, (9, 9)) for image in (values, values * values))
    return float(np.median(np.sqrt(np.maximum(square - mean * mean, 0))[matter]))


def grain(grey: Image, matter: np.ndarray) -> float:
    """Estimate the noise of one channel in the smooth half of the matter, as a standard deviation in levels.

    Uses Immerkaer's filter, which ignores planes and straight edges; its absolute value has the mean sqrt(2/pi) sigma.
    Smooth pixels are those whose slope, after blurring, is at most the median.
    """
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
    deviation = np.abs(cv2.filter2D(grey, cv2.CV_32F, kernel))
    steepness = slope(np.asarray(cv2.blur(grey, (5, 5)), np.uint8))
    smooth = matter & (steepness <= np.median(steepness[matter]))
    return float(deviation[smooth].mean() * np.sqrt(np.pi / 2))


def spectrum_slope(grey: Image) -> float:
    """Fit the exponent of the power spectrum, f**slope, from 0.02 to 0.35 cycles per pixel; NaN for less than 64 px.

    Natural pictures have about -2, white noise 0. A Hann window suppresses the edges of the frame.
    """
    if min(grey.shape) < 64:
        return float("nan")
    window = np.outer(*(np.hanning(side) for side in grey.shape))
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.rfftfreq(grey.shape[1]))
    edges = np.geomspace(0.02, 0.35, 13)
    ring = np.digitize(frequency, edges)
    mean = np.array([power[ring == number].mean() for number in range(1, len(edges))])
    return float(np.polyfit(np.log(edges[:-1] * edges[1:]) / 2, np.log(mean + 1e-9), 1)[0])


def earth_movers_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the earth mover's distance of two samples without NaNs: the area between their quantile functions."""
    first, second = (np.sort(values[~np.isnan(values)]) for values in (a, b))
    if not len(first) or not len(second):
        return float("nan")
    points = np.sort(np.concatenate([first, second]))
    below = [np.searchsorted(values, points[:-1], side="right") / len(values) for values in (first, second)]
    return float(np.sum(np.abs(below[0] - below[1]) * np.diff(points)))


def histogram_distance(name: str, a: np.ndarray, b: np.ndarray) -> float:
    """Compute the earth mover's distance of two histograms of `HISTOGRAMS`, in its unit; hue is circular."""
    bins, low, high = HISTOGRAMS[name]
    gap = np.cumsum(a - b)
    if name == "hue":  # on a circle, the optimal transport subtracts the median
        gap -= np.median(gap)
    return float(np.abs(gap).sum() * (high - low) / bins)


def _histogram(name: str, values: np.ndarray) -> np.ndarray:
    bins, low, high = HISTOGRAMS[name]
    counts = np.histogram(values, bins, (low, high))[0]
    return counts / max(1, counts.sum())
