"""The metadata store: what ran, with what, and what came of it, in one SQL database.

Runs in: driver.

``ledger.Ledger`` reads, ``writer.LedgerWriter`` writes for one run in the background; ``records`` are the rows.
This package is the only one that knows SQLAlchemy, which costs a quarter of a second to import: so nothing
is imported here, and ``records`` can be had without it.
"""
