"""SegLoc stage 1: from labelled and unlabelled X-ray scans to shards of positive pairs. Never imports torch.

``__init__.pyi`` lists the public API (docs/api.md). Each name's module is imported on first use.
"""

import sys

import lazy_loader

if sys.argv[:1] == ["-m"]:  # a command: a stop while its modules are imported ends it in one line
    from segloc.common import stops

    stops.listen()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
