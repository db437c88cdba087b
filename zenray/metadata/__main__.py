"""``python -m zenray.metadata upgrade URL``: bring a shared database's tables up to date.

Runs in: driver.
"""

import sys

from zenray.errors import MetadataError
from zenray.metadata.database import Database


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    if len(arguments) != 2 or arguments[0] != "upgrade":
        print("usage: python -m zenray.metadata upgrade URL", file=sys.stderr)
        return 2
    database = Database(arguments[1])
    try:
        database.upgrade()
    except MetadataError as exc:
        print(exc, file=sys.stderr)
        return 1
    print(f"{database.name} is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
