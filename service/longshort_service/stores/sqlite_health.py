"""Whether the file of an SQLite store is whole, as far as a start can wait for the answer."""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import Final

logger = logging.getLogger(__name__)

# A file of 1 GB with a million sessions takes 0.9 s from memory; a slow disk reads 1 GB in this time.
_CHECK_S: Final = 10.0


def find_damage(connection: sqlite3.Connection, *, timeout_s: float = _CHECK_S) -> str:
    """Read the file's pages and say in SQLite's words what is damaged, "" where nothing is.

    What is not read within the time is not judged: the log says so. Raises sqlite3.Error.
    """
    timer = threading.Timer(timeout_s, connection.interrupt)
    timer.start()
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        logger.warning(
            "the session store's file is too large to be read whole at the start: not all was checked"
        )
        return ""
    finally:
        timer.cancel()
        timer.join()  # a late interrupt would hit the next statement
    return "" if found == "ok" else " ".join(found.split())
