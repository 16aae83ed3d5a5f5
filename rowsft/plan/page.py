"""Plans side by side as a table, for the terminal, and for a page with a picture."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape
from rich.table import Table
from rich.text import Text

from rowsft.measure.ledger import PARTS
from rowsft.output import escape
from rowsft.plan import Plan
from rowsft.plan.comparison import Entry
from rowsft.plan.fit import CONTEXT_BYTES, FRAGMENTATION, MIB, Card

_ASIDE = ("training peak", "scoring peak", "evaluating peak", "card needed")
SEARCHED = "longest text: at the batch above, to within half a percent and up to the model's positions"


def compared(entries: Sequence[Entry], card: Card) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a comparison: parameters, MiB by part at the peak, and what the card holds."""
    header = ["method", "trainable", *[part.replace("_", " ") for part in PARTS], *_ASIDE]
    header += [f"largest batch on {card.name}", f"longest text on {card.name}"]
    return header, [
        [entry.title, *_sizes(entry.plan), _or_none(entry.largest_batch), _or_none(entry.longest_tokens)]
        for entry in entries
    ]


def swept(plans: dict[str, Plan]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a sweep."""
    header = ["setting", "trainable", *[part.replace("_", " ") for part in PARTS], *_ASIDE]
    return header, [[name, *_sizes(plan)] for name, plan in plans.items()]


def terminal(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The table for a terminal."""
    table = Table(header[0])
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        # Text, not markup: a swept setting may hold square brackets.
        table.add_row(*(Text(escape.terminal(cell)) for cell in row))
    return table


def notes(plan: Plan) -> list[str]:
    """What holds for all plans beside `plan`."""
    settings = plan.run.settings
    return [
        f"one step of {settings.gradient_accumulation} x {settings.batch_size} examples of {plan.run.length} tokens, "
        f"gradient checkpointing {'on' if settings.gradient_checkpointing else 'off'}",
        *plan.run.assumptions,
        f"evaluated {settings.eval_batch_size} at a time",
        f"all sizes in MiB; card needed: the largest of the peaks with {100 * FRAGMENTATION:.0f} % for fragmentation "
        f"and {CONTEXT_BYTES / MIB:,.0f} MiB for the device's context",
    ]


def write(
    folder: Path, title: str, header: list[str], rows: list[list[str]], said: list[str], picture: bytes, command: str
) -> Path:
    """Write index.html (self-contained) and memory.png into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.png").write_bytes(picture)
    environment = Environment(loader=PackageLoader("rowsft.plan", "."), autoescape=select_autoescape(["html", "j2"]))
    page = environment.get_template("page.html.j2").render(
        title=title,
        setting=said[0] + ".",
        header=header,
        rows=rows,
        notes=said[1:],
        picture=base64.b64encode(picture).decode(),
        command=command,
    )
    (folder / "index.html").write_text(page)
    return folder / "index.html"


def _sizes(plan: Plan) -> list[str]:
    parts = [_mib(plan.step.peak.parts[part]) for part in PARTS]
    aside = ["–" if size is None else _mib(size) for size in (plan.selection_bytes, plan.evaluation_bytes)]
    trained = plan.trainable.total() - plan.head_parameters
    return [f"{trained:,}", *parts, _mib(plan.peak_bytes), *aside, _mib(plan.demand.card_bytes)]


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f}" if size >= 100 * MIB else f"{size / MIB:,.1f}"


def _or_none(count: int | None) -> str:
    return "none fits" if count is None else f"{count:,}"
