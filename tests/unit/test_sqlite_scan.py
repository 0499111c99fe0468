"""What a scan of the store costs on SQLite: the index gives both ends and the order, and nothing is sorted."""

from __future__ import annotations

from pathlib import Path

from carteiro.backends.sqlite.connection import Location, open_writer
from carteiro.backends.sqlite.statements import SQL
from carteiro.ports.store import scan_end


def test_a_scan_reads_its_own_range_of_the_index_and_no_more(tmp_path: Path):
    connection = open_writer(Location(str(tmp_path / "broker.db")))
    parameters = {"prefix": "due:", "end": scan_end("due:", "due:5"), "now": 0, "limit": 1}

    plan = connection.execute("EXPLAIN QUERY PLAN " + SQL["store_scan"], parameters).fetchall()

    assert [step[-1] for step in plan] == ["SEARCH store USING INDEX sqlite_autoindex_store_1 (key>? AND key<?)"]
    connection.close()
