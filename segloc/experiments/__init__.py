"""Grids of runs: the jobs of a recipe, and running them."""
