"""SegLoc stage 1: from labelled and unlabelled X-ray scans to shards of positive pairs. Never imports torch."""
