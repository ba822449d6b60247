"""SegLoc stage 2: pretraining, fine-tuning, evaluation, export and report.

``__init__.pyi`` lists the public API (docs/api.md). A name's module is imported on first use, so `import segloc` is
cheap. `segloc.common` is free of torch: stage 1 uses it too.
"""

import sys

import lazy_loader

if sys.argv[:1] == ["-m"]:  # a command: a stop while its modules are imported ends it in one line
    from segloc.common import stops

    stops.listen()

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
