"""SegLoc stage 2: pretraining, fine-tuning, evaluation, export and report.

Importing this package imports nothing else. `segloc.contract` is free of torch: stage 1 writes what it describes.
"""

__version__ = "0.1.0"
