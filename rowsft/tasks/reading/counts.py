"""What reading skipped and dropped."""

from dataclasses import dataclass


@dataclass
class Counts:
    """Of one file: lines that hold nothing but blanks, and rows that were dropped for a cell without a value."""

    blank_lines: int = 0
    empty_rows: int = 0
