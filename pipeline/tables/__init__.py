"""Parquet tables of regions, segments and sources: schema, writer and reader."""
