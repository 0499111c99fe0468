"""The command line: `carteiro new`, `run`, `publish`, `request`, `topics`, `dlq`, `doctor`, `config`."""

from carteiro.cli.commands import main

__all__ = ["main"]
