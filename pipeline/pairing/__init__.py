"""Positive pairs: geometry, blending, the pair as a pure function (paper section 3.1)."""
