"""Checks and statistics of the audit."""
