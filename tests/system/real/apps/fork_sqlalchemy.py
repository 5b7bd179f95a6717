"""An engine that has connected when the module was imported, as one does that reads its tables then."""

import os

from fork_common import Outcome, app_of
from sqlalchemy import create_engine, text

engine = create_engine(os.environ["DATABASE"])


def ask() -> Outcome:
    """connection: its number at the server."""
    with engine.connect() as connection:
        return {"connection": int(connection.execute(text("select 'x'")).scalar_one())}


ask()
app = app_of(ask)
