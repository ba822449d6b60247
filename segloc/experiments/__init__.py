"""Grids of runs: jobs of a recipe, locks, execution."""
