"""docs/extending.md shows files of tests/extending/: `python docs/hooks/examples.py` copies them into the page.

A test says when page and files differ.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/extending.md"
#: A line that names a file, and the block below it.
BLOCK = re.compile(
    r"(?<=^<!-- file: )(?P<file>\S+)(?P<head> -->\n```\w+\n)(?P<text>.*?)(?=^```$)", re.DOTALL | re.MULTILINE
)


def filled(page: str) -> str:
    """Return the page with the text of every named file as it is now."""
    return BLOCK.sub(lambda m: f"{m['file']}{m['head']}{(ROOT / m['file']).read_text(encoding='utf-8')}", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
