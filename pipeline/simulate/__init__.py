"""A simulated dual-energy baggage scanner that writes scans in the on-disk layouts of PIDray and SIXray."""
