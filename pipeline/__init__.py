"""SegLoc stage 1: from labelled and unlabelled X-ray scans to shards of positive pairs. Never imports torch.

``__init__.pyi`` lists the public API (docs/api.md). Each name's module is imported on first use.
"""

import lazy_loader

from segloc.common import stops

stops.listen()  # a stop while a command's modules are imported ends it in one line

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
