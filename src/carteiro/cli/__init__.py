"""The command line: `carteiro run`, `publish`, `request`, `topics`, `dlq`, `doctor`, `config`."""

from carteiro.cli.commands import main

__all__ = ["main"]
