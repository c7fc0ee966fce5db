"""A table that a test leaves for the end of the run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

TABLE = pytest.StashKey[Table]()


def spell(table: Table) -> str:
    """As text, a hundred columns wide."""
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
