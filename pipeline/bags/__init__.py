"""The authentic region: the part of a scan that shows bags rather than empty belt (paper section 3.2)."""
