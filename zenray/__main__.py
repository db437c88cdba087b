"""``python -m zenray`` is the command line.

Runs in: driver.
"""

import sys

from zenray.cli import main

if __name__ == "__main__":
    sys.exit(main())
