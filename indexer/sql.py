"""Records from a database: the rows of a query, through SQLAlchemy."""

from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cognate.errors import CognateError, RecordError
from cognate.records import Record, Rejects, parse_record
from indexer.sources import Source

ROWS = 1000
"""Rows that are fetched at a time."""

READ_ONLY = {"sqlite": "PRAGMA query_only = ON", "postgresql": "SET TRANSACTION READ ONLY"}
"""By dialect, what lets a query change nothing."""


def sql_source(database: str, query: str) -> Source:
    """Read records from the rows of a query: columns text, and label, id and attributes where it has them.

    Args:
        database: A URL of SQLAlchemy's: ``sqlite:///file.db``, ``postgresql+psycopg://user:password@host/name``.
        query: A SELECT statement; one that changes anything is refused by SQLite and PostgreSQL. An
            interrupted job can go on only where it has an ORDER BY.

    Raises:
        CognateError: It is no such URL, or SQLAlchemy or the database's driver is not installed.
    """
    if find_spec("sqlalchemy") is None:
        raise CognateError("a query needs what is not installed; run: pip install 'cognate[sql]'")
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(database)
    except ModuleNotFoundError as error:
        raise CognateError(
            f"this database needs the package {error.name}, which is not installed: pip install {error.name}"
        ) from None
    except sqlalchemy.exc.ArgumentError:
        # What was given may hold a password.
        raise CognateError(
            "--database is no URL of a database that is known; give one such as sqlite:///file.db or "
            "postgresql+psycopg://user:password@host/name"
        ) from None
    name = engine.url.set(password=None, query={}).render_as_string()
    path = engine.url.database
    # SQLite would make an empty one.
    if engine.dialect.name == "sqlite" and path and path != ":memory:" and not Path(path).exists():
        raise CognateError(f"the database {path} does not exist")

    def read(rejects: Rejects | None) -> Generator[Record, None, None]:
        number = 0
        try:
            with engine.connect() as connection:
                if read_only := READ_ONLY.get(engine.dialect.name):
                    connection.exec_driver_sql(read_only)
                # The server keeps the result, and sends it as it is read.
                streaming = connection.execution_options(stream_results=True, max_row_buffer=ROWS)
                with streaming.execute(sqlalchemy.text(query)) as result:
                    if not result.returns_rows:
                        raise CognateError(f"{name}: the query gives no rows; give a SELECT")
                    if "text" not in result.keys():  # noqa: SIM118, no mapping
                        columns = ", ".join(result.keys())
                        raise CognateError(f"the query has no column named text; it has {columns}")
                    for row in result.mappings():
                        number += 1
                        record = _record(row, name, number, rejects)
                        if record is not None:
                            yield record
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise CognateError(f"{name}: the query failed after {number:,} rows: {_reason(error)}") from None
        finally:
            engine.dispose()

    return Source(name, {"input": name, "query": query}, read)


def _record(row: Any, name: str, number: int, rejects: Rejects | None) -> Record | None:
    try:
        return parse_record(row)
    except ValueError as error:
        refused = RecordError(name, number, str(error))
        if rejects is None:
            raise refused from None
        rejects.add(refused)
        return None


def _reason(error: Any) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
