"""Makes the tables of the 19.03 manager from its own definitions. Runs in the manager's environment; argument: the database's URL."""
import sys

import sqlalchemy

import ai.backend.manager.models  # noqa: F401  (registers the tables)
from ai.backend.manager.models.base import metadata

engine = sqlalchemy.create_engine(sys.argv[1])
engine.execute('CREATE EXTENSION IF NOT EXISTS "uuid-ossp"')
metadata.create_all(engine, checkfirst=True)
