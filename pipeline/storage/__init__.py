"""Shards as they are written: byte-stable, resumable, on a disk or a store."""
