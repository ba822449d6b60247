"""A simulated dual-energy baggage scanner that writes scans the way PIDray and SIXray lay them out on disk."""
