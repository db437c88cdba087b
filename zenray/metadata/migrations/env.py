"""Runs migrations on the connection, and inside the transaction, that ``zenray.metadata.migration`` has begun.

Runs in: driver.
"""

from alembic import context

from zenray.metadata.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite changes a table by making it anew
)
with context.begin_transaction():
    context.run_migrations()
