"""Runs read, compared and shown: tables, charts, the page."""
