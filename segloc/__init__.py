"""SegLoc stage 2: pretraining, fine-tuning, evaluation, export and report.

``__init__.pyi`` lists the public API (docs/api.md). A name's module is imported on first use, so `import segloc` is
cheap. `segloc.common` is free of torch: stage 1 uses it too.
"""

import lazy_loader

from segloc.common import stops

stops.listen()  # a stop while a command's modules are imported ends it in one line

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
