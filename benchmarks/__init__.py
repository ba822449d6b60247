"""Speed benchmarks; each prints a ratio to a lower bound or to a peer measured in the same run."""
