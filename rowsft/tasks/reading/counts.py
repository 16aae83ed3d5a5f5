"""What reading skipped."""

from dataclasses import dataclass


@dataclass
class Counts:
    """Of one file: lines that hold nothing but blanks."""

    blank_lines: int = 0
