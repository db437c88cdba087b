"""``zenray`` and ``python -m zenray``: the command line.

Runs in: driver.
"""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is still being imported is no error either."""
    try:
        from zenray import cli

        return cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("cancelled\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
