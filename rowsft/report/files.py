"""A report's files and what it prints: what `rowsft report` does."""

import io
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rowsft.errors import UserError
from rowsft.output import escape
from rowsft.progress import steps
from rowsft.report import flat, plots, terminal
from rowsft.report.grids import Grids
from rowsft.report.harness_setups import Names
from rowsft.report.markdown import markdown
from rowsft.report.page import page
from rowsft.report.rows import gather
from rowsft.report.section import Section, section
from rowsft.store import Store
from rowsft.store.files import explained, write_atomic, write_csv


@dataclass(frozen=True)
class ReportFiles:
    """What `build` wrote and what it was made from.

    picture is None when there was nothing to draw, curves when no method was run at several budgets.
    """

    markdown: Path
    runs: Path
    table: Path
    picture: Path | None
    page: Path
    sections: list[Section]
    curves: Path | None = None


def sections(store: str | Path | Store, experiment: str | None = None) -> list[Section]:
    """Return the computed tables of one experiment, or of all. Raises UserError when the store has no such run."""
    store = store if isinstance(store, Store) else Store(store)
    everything = store.runs()
    known = sorted({name for record in everything for name in record.experiments})
    if experiment is not None and experiment not in known:
        raise UserError(
            f"experiment {experiment!r}: no runs in store {store.root}; "
            + (f"it has: {', '.join(known)}" if known else "it has no experiment; run one with `rowsft sweep`")
        )
    if not everything:
        raise UserError(f"store {store.root}: no runs; make some with `rowsft run` or name another with --store FOLDER")
    wanted: list[str | None] = [experiment] if experiment is not None else [*known, None]
    tables = gather(everything, wanted)
    grids, names = Grids(everything), Names(record for table in tables for record in table.records)
    with steps("computing tables", sum(bool(row.done) for table in tables for row in table.rows)) as step:
        return [section(table, grids, names, step) for table in tables]


def build(store_root: str | Path, experiment: str | None = None, out: str | Path = "reports") -> ReportFiles:
    """Write report.md, runs.csv, table.csv, budget_curves.csv, accuracy_vs_memory.png and index.html into `out`.

    Raises UserError when there is nothing to report or `out` cannot be written.
    """
    out, store = Path(out), Store(store_root)
    computed = sections(store, experiment)
    missing = _missing(store.skipped)
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    records = {record.id: record for part in computed for record in part.table.records}
    picture = out / "accuracy_vs_memory.png"
    light, dark = (plots.accuracy_vs_memory(computed, theme) for theme in (plots.LIGHT, plots.DARK))
    curves = [line for part in computed if part.budgets for line in part.budgets.flat()]
    files = ReportFiles(
        out / "report.md",
        out / "runs.csv",
        out / "table.csv",
        picture if light else None,
        out / "index.html",
        computed,
        out / "budget_curves.csv" if curves else None,
    )
    title = f"rowsft report: {experiment}" if experiment else "rowsft report"
    parts = [f"# {escape.markdown(title)}\n"]
    if light:
        parts.append("![primary metric against peak memory of training](accuracy_vs_memory.png)\n")
        write_atomic(picture, light)
    parts += [f"> {escape.markdown(missing)}\n"] if missing else []
    write_atomic(files.markdown, "\n".join([*parts, *(markdown(part) for part in computed)]).encode())
    write_csv(files.runs, flat.run_rows([records[key] for key in sorted(records)]))
    write_csv(files.table, flat.table_rows(computed))
    if files.curves is not None:
        write_csv(files.curves, curves)
    write_atomic(files.page, page(title, computed, light, dark, missing).encode())
    return files


def _missing(skipped: list[str]) -> str | None:
    """Return what a reader must know of runs that are in no table, whatever experiment they belong to."""
    if not skipped:
        return None
    shown = ", ".join(skipped[:5]) + ("" if len(skipped) <= 5 else " ...")
    runs = "1 run of the store has a record" if len(skipped) == 1 else f"{len(skipped)} runs of the store have records"
    return f"{runs} that cannot be read, in no table here: {shown}"


def print_tables(files: ReportFiles, console: Console | None = None) -> None:
    """Print the tables and where the files are."""
    console = console or Console()
    for part in files.sections:
        terminal.show(part, console)
    where = f"page: {files.page}   tables: {files.markdown}   numbers: {files.table}, {files.runs}"
    console.print(Text(escape.terminal(where), style="dim"))


def text(parts: list[Section], width: int = 160) -> str:
    """Return the terminal's tables as plain text."""
    stream = io.StringIO()
    console = Console(width=width, no_color=True, force_terminal=False, file=stream)
    for part in parts:
        terminal.show(part, console)
    return stream.getvalue()
