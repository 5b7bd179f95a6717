"""psycopg's own pool, made when the module is imported, or by hooks; it has threads, and a connection."""

import os

from fork_common import Outcome, app_of
from psycopg_pool import ConnectionPool

CONNINFO = os.environ["CONNINFO"]
pool = None


def ask() -> Outcome:
    """connection: its number at the server."""
    with pool.connection(timeout=20) as connection:
        (number,) = connection.execute("select 'x'").fetchone()
    return {"connection": int(number)}


if os.environ["MADE"] == "when imported":
    pool = ConnectionPool(CONNINFO, min_size=1, max_size=1, open=True)
    ask()
app = app_of(ask)
