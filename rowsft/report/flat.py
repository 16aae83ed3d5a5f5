"""CSV files: every run with everything flat, and the shown rows as numbers."""

import json

from rowsft.record import plain
from rowsft.report.section import Section
from rowsft.report.settings import flatten
from rowsft.store import Record

#: Free-form parts of an attempt: one JSON cell each, for their keys differ from run to run.
_WHOLE = ("resolved", "task_about", "model_facts", "files")


def run_rows(records: list[Record]) -> list[dict]:
    """Return one dict a run: what it is, `config.*`, and the fields of its result (else of its latest attempt)."""
    rows = []
    for record in records:
        fields = plain(record.result or record.latest) or {}
        fields.pop("state", None)
        if fields.get("error"):
            fields["error"] = {key: value for key, value in fields["error"].items() if key != "traceback"}
        if layers := (fields.get("forgetting") or {}).get("csd_rel_layers"):
            fields["forgetting"] = {**fields["forgetting"], "csd_rel_layers": json.dumps(layers, sort_keys=True)}
        whole = {key: json.dumps(fields.pop(key), sort_keys=True) for key in _WHOLE if key in fields}
        row = {
            "id": record.id,
            "state": record.state,
            "experiments": " ".join(record.experiments),
            "attempts": len(record.attempts),
            **{f"config.{key}": value for key, value in flatten(record.config).items()},
            **flatten(fields),
            **whole,
        }
        rows.append({key: _cell(value) for key, value in row.items()})
    return rows


def table_rows(sections: list[Section]) -> list[dict]:
    """Return one dict a shown row, runs without a result after them with their state and reason."""
    rows = []
    for section in sections:
        table = section.table
        where = {"experiment": table.experiment, "task": table.task, "model": table.model}
        rows += [{"state": "done", **line.flat()} for line in section.lines]
        rows += [where | vars(run) for run in section.unfinished]
    return rows


def _cell(value):
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value
