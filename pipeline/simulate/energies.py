"""Raw images of the two energies, and the effective atomic number computed from them."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.simulate.materials import HIGH_KEV, LOW_KEV, MATERIALS
from pipeline.simulate.scanner import HUE_PX, attenuation_ratio, is_air

# Level of an empty belt in raw images. The rest of the 16 bits leaves room for noise.
BELT_LEVEL = 50_000
# Level of atomic number 1 in images of atomic numbers, and the level of pixels whose number is unknown.
ATOMIC_LEVEL, UNKNOWN = 1000, 2**16 - 1
# Low-energy attenuation above which too few photons (one in a thousand) arrive to compute the atomic number.
OPAQUE = 7.0

ELECTRON_KEV = 510.999


def raw_images(attenuation: np.ndarray) -> np.ndarray:
    """Measured transmissions as the 16-bit images of a dual-energy machine.

    Args:
        attenuation: as measured, float32 [2 energies (low, high), height, width].

    Returns:
        uint16 of the same shape; transmission is the value over `BELT_LEVEL`.
    """
    return np.clip(np.rint(np.exp(-attenuation) * BELT_LEVEL), 0, 2**16 - 1).astype(np.uint16)


def atomic_number_image(attenuation: np.ndarray) -> np.ndarray:
    """Effective atomic numbers of a scan, as dual-energy machines output them next to the two energies.

    Args:
        attenuation: as measured, float32 [2 energies (low, high), height, width].

    Returns:
        uint16 [height, width], the effective atomic number times `ATOMIC_LEVEL`; 0 where the belt is empty, `UNKNOWN`
        where hardly any low-energy photons pass or noise makes the number undefined.
    """
    number = effective_atomic_number(attenuation_ratio(attenuation)) * ATOMIC_LEVEL
    number[cv2.blur(attenuation[0], (HUE_PX, HUE_PX)) > OPAQUE] = UNKNOWN
    number[is_air(attenuation.mean(axis=0))] = 0
    return np.rint(np.minimum(number, UNKNOWN)).astype(np.uint16)


def klein_nishina(kev: float) -> float:
    """Energy dependence of Compton scattering: the Klein-Nishina function f_KN (Alvarez and Macovski 1976, eq. 3)."""
    a = kev / ELECTRON_KEV
    return (
        (1 + a) / a**2 * (2 * (1 + a) / (1 + 2 * a) - np.log(1 + 2 * a) / a)
        + np.log(1 + 2 * a) / (2 * a)
        - (1 + 3 * a) / (1 + 2 * a) ** 2
    )


def _photoelectric_to_compton(ratio: np.ndarray | float) -> np.ndarray:
    """a1 / a2 of attenuation = a1 / E^3 + a2 f_KN(E), from its ratio at the low and the high energy."""
    low, high, ratio = LOW_KEV**-3.0, HIGH_KEV**-3.0, np.asarray(ratio, float)
    return (ratio * klein_nishina(HIGH_KEV) - klein_nishina(LOW_KEV)) / (low - ratio * high)


def effective_atomic_number(ratio: np.ndarray | float) -> np.ndarray:
    """Effective atomic number of the material in the beam, for any thickness.

    Alvarez and Macovski, *Energy-selective reconstructions in X-ray computerized tomography*, Phys. Med. Biol. 21
    (1976) 733: attenuation is a1 / E^3 + a2 f_KN(E), photoelectric effect and Compton scattering, with a1 proportional
    to Z^4 and a2 to Z, so Z = K (a1 / a2)^(1/3). K is set so that aluminium has 13. From polyethylene to copper the
    result is within 0.6 of published tables. Above copper the power laws fail: lead, whose K edge lies above both
    energies, gives about 27.

    Args:
        ratio: low over high attenuation, as `palette.colourise` takes it.

    Returns:
        Effective atomic number; 0 where noise makes the ratio lower than pure Compton scattering allows, infinite where
        the ratio is above that of the pure photoelectric effect, 4.1.
    """
    aluminium = MATERIALS["aluminium"]
    reference = _photoelectric_to_compton(aluminium.mass_attenuation_low / aluminium.mass_attenuation_high)
    ratio = np.asarray(ratio, float)
    with np.errstate(divide="ignore"):
        number = 13 * np.cbrt(np.maximum(_photoelectric_to_compton(ratio) / reference, 0))
    return np.where(ratio < (HIGH_KEV / LOW_KEV) ** 3, number, np.inf)
