"""One self-contained HTML page: style, pictures and curves inside, nothing fetched, everything escaped."""

import base64
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rowsft.output import escape
from rowsft.record import plain
from rowsft.report import budget_curves, curves, tuning_curves
from rowsft.report.budgets import Series
from rowsft.report.listing import page_sheet
from rowsft.report.notes import demonstration, notes
from rowsft.report.section import Section
from rowsft.report.settings import flatten
from rowsft.report.tables import blocks, by_budget, heading, main
from rowsft.store import Record


def page(
    title: str, sections: list[Section], light: bytes | None, dark: bytes | None, missing: str | None = None
) -> str:
    """Return the page as text. `light` and `dark` are the PNG bytes of the picture for both colour schemes.

    missing: which runs of the store are in no table.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    records = list({record.id: record for section in sections for record in section.table.records}.values())
    return environment.get_template("page.html.j2").render(
        title=title,
        summary=[*_summary(records), *([missing] if missing else [])],
        sections=[_section(section) for section in sections],
        light=_encoded(light),
        dark=_encoded(dark),
        environments=_environments(records),
        sources=_sources(records),
        runs=page_sheet(records),
    )


def _encoded(picture: bytes | None) -> str | None:
    return base64.b64encode(picture).decode() if picture else None


def _pictures(drawn: list[tuple[str, bytes]]) -> list[dict]:
    return [{"caption": caption, "chart": _encoded(picture)} for caption, picture in drawn]


def _visible(value):
    """Return what a template writes: every character of a text can be seen. Markup is the template's own."""
    return escape.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _summary(records: list[Record]) -> list[str]:
    done = sum(record.result is not None for record in records)
    days = sorted(day for record in records if (day := ((record.latest and record.latest.started_at) or "")[:10]))
    facts = [f"{len(records)} runs", f"{done} finished"]
    if done < len(records):
        facts.append(f"{len(records) - done} without a result")
    if days:
        facts.append(days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}")
    return facts


def _section(section: Section) -> dict:
    return {
        "heading": heading(section.table),
        "demonstration": demonstration(section.table),
        "main": main(section) if section.lines else None,
        "budgets": _pictures(budget_curves.charts(section.budgets)) if section.budgets else [],
        "tuning": _pictures(tuning_curves.charts(section)),
        "by_budget": by_budget(section) if section.budgets else None,
        "blocks": [sheet for sheet in blocks(section) if not isinstance(sheet.items[0], Series)],
        "notes": notes(section),
        "conditions": section.conditions,
        "remarks": section.remarks,
        "chart": _encoded(curves.chart(section)),
        "fewer_curves": len(section.table.rows) > curves.MOST_LINES,
        "metric": section.table.metric,
    }


def _environments(records: list[Record]) -> list[dict]:
    """Return every distinct machine and software that made results, with the number of its runs."""
    machines: dict[str, dict] = {}
    for record in records:
        about = plain(record.result.environment) or {} if record.result else {}
        about.pop("seeds", None)
        if about:
            machine = machines.setdefault(json.dumps(about, sort_keys=True), {"runs": 0, "facts": _facts(about)})
            machine["runs"] += 1
    return [machines[key] for key in sorted(machines)]


def _sources(records: list[Record]) -> list[dict]:
    """Return what the runs say of their models and data: source, licence, caveat, sizes, hashes."""
    sources: dict[str, dict] = {}
    for record in records:
        for kind, group, key in (("model", "model", "model_facts"), ("data", "task", "task_about")):
            about = plain(getattr(record.result, key, None))
            if about:
                name = (record.config.get(group) or {}).get("name", "?")
                text = f"{kind} {name} {json.dumps(about, sort_keys=True)}"
                sources[text] = {"kind": kind, "name": name, "facts": _facts(about)}
    return [sources[key] for key in sorted(sources, reverse=True)]


def _facts(about: dict) -> list[tuple[str, str]]:
    return [(key, _text(value)) for key, value in flatten(about).items() if value not in (None, [], {})]


def _text(value) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else str(value)
