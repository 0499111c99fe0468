"""The command line: `carteiro run`, `publish`, `request`, `topics`, `dlq`, `doctor`."""

from carteiro.cli.commands import main

__all__ = ["main"]
