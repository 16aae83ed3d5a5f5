"""CSV files: every run with everything flat, and the shown rows as numbers."""

import json

from rowsft.record import plain
from rowsft.report.harness_setups import Names, metrics, newest
from rowsft.report.section import Section
from rowsft.report.settings import flatten
from rowsft.store import Record

#: Free-form parts of an attempt: one JSON cell each, for their keys differ from run to run.
_WHOLE = ("resolved", "task_about", "model_facts", "files")


def run_rows(records: list[Record]) -> list[dict]:
    """Return one dict a run: what it is, `config.*`, and the fields of its result (else of its latest attempt).

    Of evaluations by lm-evaluation-harness that may be compared, the newest counts; others have columns of their own.
    """
    rows, names = [], Names(records)
    for record in records:
        fields = plain(record.result or record.latest) or {}
        for name in ("state", "lm_eval"):
            fields.pop(name, None)
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
            **_harness(record, names),
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


def _harness(record: Record, names: Names) -> dict[str, float | None]:
    """Return a run's numbers of lm-evaluation-harness: lm_eval.boolq.acc, lm_eval.boolq.acc_stderr, its examples."""
    columns: dict[str, float | None] = {}
    for setup, result in newest(record.result).items():
        for key, value in metrics(result).items():
            metric, _, kept = key.partition(",")
            columns[names.key(setup, key)] = value
            columns[f"{names.key(setup, key)}_stderr"] = result.metrics.get(f"{metric}_stderr,{kept}")
        columns[names.key(setup, "examples")] = result.examples
    return columns


def _cell(value):
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value
