"""The study, the simulator's realism, and the pages with their results."""
