"""One reader of the user's data for every task: files, saved data sets and data sets of the hub, as columns of text.

Text is text exactly as it is written: no type is guessed. Every row keeps its place (line, element or row, from 1), so
that a message can name it. The libraries parse (csv, json, pyarrow, datasets); here is what is refused, and how it is
said. See docs/data.md.
"""

from rowsft.tasks.reading.cells import MayBeEmpty
from rowsft.tasks.reading.formats import EXPECTED, SEPARATORS, is_file_name, read_file, read_folder, read_hub
from rowsft.tasks.reading.numbers import number
from rowsft.tasks.reading.table import Table

__all__ = [
    "EXPECTED",
    "SEPARATORS",
    "MayBeEmpty",
    "Table",
    "is_file_name",
    "number",
    "read_file",
    "read_folder",
    "read_hub",
]
