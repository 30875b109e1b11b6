"""What Alembic runs: the migrations, on the connection and in the transaction that it was given."""

from alembic import context

from smedje.store.tables import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables)
with context.begin_transaction():
    context.run_migrations()
