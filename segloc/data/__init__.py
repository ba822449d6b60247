"""Shards to batches: which pair comes when, decoding, augmentation."""
