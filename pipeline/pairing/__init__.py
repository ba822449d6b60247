"""Positive pairs: geometry, blending, and the pair as a pure function (paper section 3.1)."""
