"""``python -m tests.faults.dirty``."""

import sys

from tests.faults import common, dirty

sys.exit(common.main(dirty))
