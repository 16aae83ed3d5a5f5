"""Records -> statistics -> tables, a picture, one page. Reads the store alone, never imports torch.

The same records give the same files.

    files = build("runs", "quickstart", "reports/quickstart")
    print_tables(files)

May import store, output and selection's rule of when a budget is met. Must not write into the store.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rowsft.report.files import ReportFiles, build, print_tables, sections, text
    from rowsft.report.section import Section

__all__ = ["ReportFiles", "Section", "build", "print_tables", "sections", "text"]


def __getattr__(name: str) -> Any:
    # On demand: `rowsft runs` and `rowsft tune` need none of what a report is computed with.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("rowsft.report.files"), name)
    globals()[name] = value
    return value
