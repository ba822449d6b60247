"""SegLoc stage 2: pretraining, fine-tuning, evaluation, export and report.

Importing this package imports nothing else. `segloc.common` is free of torch: stage 1 uses it too.
"""

__version__ = "0.1.0"
