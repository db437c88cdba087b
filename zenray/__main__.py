"""``python -m zenray`` is the command line.

Runs in: driver.
"""

from zenray.cli import main

if __name__ == "__main__":
    main()
