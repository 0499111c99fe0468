"""Who is measured: workers, which the library's own command starts, and a `publishing()` for publishing.py to run."""
