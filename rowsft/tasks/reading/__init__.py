"""One reader of the user's data for every task: files, saved data sets and data sets of the hub, as columns of text.

Text is text exactly as it is written: no type is guessed. Every row keeps its place (line, element or row, from 1), so
that a message can name it. The libraries parse (csv, json, pyarrow, datasets); here is what is refused, and how it is
said. See docs/data.md.
"""

from rowsft.tasks.reading.cells import MayBeEmpty
from rowsft.tasks.reading.columns import MissingColumn
from rowsft.tasks.reading.fields import LIST
from rowsft.tasks.reading.formats import (
    EXPECTED,
    SEPARATORS,
    Choice,
    is_file_name,
    is_saved,
    read_file,
    read_hub,
    read_saved,
)
from rowsft.tasks.reading.numbers import number
from rowsft.tasks.reading.split_files import canonical, read_split_files
from rowsft.tasks.reading.table import Table, check_same_classes

__all__ = [
    "EXPECTED",
    "LIST",
    "SEPARATORS",
    "Choice",
    "MissingColumn",
    "MayBeEmpty",
    "Table",
    "canonical",
    "check_same_classes",
    "is_file_name",
    "is_saved",
    "number",
    "read_file",
    "read_hub",
    "read_saved",
    "read_split_files",
]
