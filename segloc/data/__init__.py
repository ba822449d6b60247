"""From shards to batches: order of the pairs, decoding, augmentation."""
