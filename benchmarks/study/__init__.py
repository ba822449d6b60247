"""The study, the simulator's realism, and the pages made of their results."""
