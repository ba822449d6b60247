"""Materials: attenuation at the scanner's two effective energies.

Mass attenuation coefficients are from NIST Standard Reference Database 126 (Hubbell and Seltzer, *Tables of X-Ray Mass
Attenuation Coefficients*) at 50 and 80 keV. Those of compounds follow from their elements by the mixture rule (mass
fractions). Both energies lie below lead's K edge at 88 keV: the broad spectrum of a 160 kV tube smears that edge out,
whereas a single energy above it would make lead look organic.
"""

from __future__ import annotations

import dataclasses

import numpy as np

LOW_KEV, HIGH_KEV = 50, 80


@dataclasses.dataclass(frozen=True)
class Material:
    """One material.

    Attributes:
        mass_attenuation_low: mass attenuation coefficient at `LOW_KEV`, cm²/g.
        mass_attenuation_high: the same at `HIGH_KEV`.
        density: g/cm³ as packed in a bag (folded cloth is mostly air).
    """

    mass_attenuation_low: float
    mass_attenuation_high: float
    density: float


MATERIALS: dict[str, Material] = {
    "cloth": Material(0.2092, 0.1736, 0.30),  # cellulose, folded
    "paper": Material(0.2092, 0.1736, 0.80),  # cellulose; dry wood is close to it
    "water": Material(0.2269, 0.1837, 1.00),  # food, drinks, cosmetics
    "fuel": Material(0.2128, 0.1867, 0.60),  # butane C4H10; propellants
    "plastic": Material(0.2084, 0.1823, 0.94),  # polyethylene
    "rubber": Material(0.2600, 0.1950, 1.25),  # polyisoprene with a tenth of chalk filler
    "pvc": Material(0.4559, 0.2298, 1.38),
    "glass": Material(0.3665, 0.2049, 2.50),  # soda-lime
    "aluminium": Material(0.3681, 0.2018, 2.70),
    "board": Material(0.6381, 0.2755, 1.85),  # 45 % glass, 40 % epoxy, 15 % copper
    "battery": Material(0.9707, 0.3557, 2.30),  # LiCoO2, graphite, copper, aluminium, electrolyte
    "steel": Material(1.9580, 0.5952, 7.87),  # iron
    "copper": Material(2.6130, 0.7630, 8.96),
    "brass": Material(2.6987, 0.7855, 8.50),  # 70 % copper, 30 % zinc
    "lead": Material(8.0410, 2.4190, 11.35),
}

INDEX = {name: number for number, name in enumerate(MATERIALS)}

# Linear attenuation coefficients in 1/cm, [2 energies (low, high), materials].
LINEAR_ATTENUATION = np.array(
    [(m.mass_attenuation_low * m.density, m.mass_attenuation_high * m.density) for m in MATERIALS.values()], np.float32
).T.copy()
