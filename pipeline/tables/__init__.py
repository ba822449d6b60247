"""Parquet tables of regions and segments: schema, writer and reader."""
