"""``python -m tests.faults.dirty``."""

import sys

from tests.faults import common, dirty

if __name__ == "__main__":
    sys.exit(common.main(dirty))
