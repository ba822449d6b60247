"""The authentic region: which part of a scan is bag rather than empty belt (paper section 3.2)."""
