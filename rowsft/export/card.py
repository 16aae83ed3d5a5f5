"""The model card that goes with an export: what it is, how to load it, and the run's own numbers."""

import json
import re
import shlex
from typing import Any

import yaml

from rowsft.export.command import command
from rowsft.export.source import Source
from rowsft.layers.packing import LIBRARIES
from rowsft.output import escape, redact
from rowsft.record import Attempt
from rowsft.report.harness_setups import Names, main_metric, newest
from rowsft.report.settings import flatten, named
from rowsft.store import Record

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MIB = 2**20
_KINDS = {
    "lora": "A standard LoRA adapter. Its update of every weight is exactly that of the row-SFT adapter it was made "
    "from: for chosen rows B selects the rows and A holds their change, for chosen columns the other way round.",
    "merged": "A plain transformers checkpoint: the adapter is built into the weights.",
}
_LOADING = {
    "lora": """\
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained({base}{labels})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
""",
    "merged": """\
from transformers import AutoTokenizer, {auto}

model = {auto}.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
""",
}
# Groups of the configuration that say how a run was made, not where or under what name.
_SETTINGS = ("method", "budget", "trainer", "seed")


# Of a run on a quantised base, by what it was merged into.
_QUANTISED = {
    None: "The adapter is a change of a base in {kind}, all linear layers but the head by {library}: without that "
    "quantisation the base is another model.",
    "quantised": "The base was trained in {kind} ({library}); these are its unpacked values with the adapter in them, "
    "which compute what the trained model computed.",
    "original": "The base was trained in {kind} ({library}), and the change was merged into the weights before "
    "quantisation: another model than the one that was trained and evaluated.",
}


def text(source: Source, to: str, run: str, into: str | None = None) -> str:
    """README.md of an export to `to`; `run` is how the user named the source, `into` what was merged into."""
    base = source.model["source"]
    front = {"library_name": "peft" if to == "lora" else "transformers", "tags": ["row-sft"]}
    if _HUB_ID.fullmatch(str(base)):
        front["base_model"] = str(base)
    classes = source.result.task_about.classes
    labels = f", num_labels={len(classes)}" if classes else ""
    loading = _LOADING[to].format(auto=source.head.model_class, base=json.dumps(redact.text(str(base))), labels=labels)
    merged_into = f" --merge-into {into}" if into else ""
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, default_flow_style=None)}---",
        f"# {escape.markdown(_title(source))}",
        _KINDS[to],
        *_quantised(source, into),
        escape.code_block(loading, "python"),
        *_numbers(source),
        f"Written by {escape.code(redact.text(f'rowsft export {shlex.quote(run)} --to {to}{merged_into}'))}.",
    ]
    return "\n\n".join(parts) + "\n"


def _quantised(source: Source, into: str | None) -> list[str]:
    kind = source.model.get("quantize")
    return [_QUANTISED[into].format(kind=kind, library=LIBRARIES[kind])] if kind else []


def _title(source: Source) -> str:
    if source.record is None:
        return f"Adapter of {redact.text(str(source.model['source']))}"
    config = source.record.config
    return f"{named(config, 'model')} tuned on {named(config, 'task')} with {named(config, 'method')}"


def _numbers(source: Source) -> list[str]:
    """Two tables from the record; none for a bare adapter folder, which has no record."""
    record, result = source.record, source.result
    if record is None:
        return []
    made = {key: record.config.get(key) for key in _SETTINGS}
    settings = {key: value for key, value in flatten(made).items() if value is not None}
    versions = result.environment.packages
    rows = {
        **{escape.code(key, cell=True): value for key, value in settings.items()},
        "revision of the base": result.model_facts.revision,
        "commit of rowsft": result.environment.git_commit,
        **{name: versions.get(name) for name in ("torch", "transformers", "peft")},
    }
    line = command(record.config)
    return [
        f"## Numbers of run {record.id}",
        _table({**_measured(record.config, result), **_evaluated(record)}),
        "Accuracies and losses are those of the adapter as trained; times and memory those of the machine it ran on.",
        "## How it was trained",
        *([escape.code_block(line, "sh")] if line else []),
        _table(rows),
    ]


def _measured(config: dict[str, Any], result: Attempt) -> dict[str, Any]:
    peak, step = result.memory.train.peak_allocated_bytes, result.step_seconds.median
    return {
        "task": named(config, "task"),
        "data": result.task_about.source,
        "licence of the data": result.task_about.licence,
        "primary metric": result.primary_metric,
        **{
            escape.markdown(f"{split} {name}"): f"{value:.4f}" if isinstance(value, float) else value
            for split, metrics in result.metrics.items()
            for name, value in (metrics or {}).items()
        },
        "trainable parameters, task head apart": result.parameters.adapter,
        "parameters of the task head": result.parameters.head,
        "peak memory of training, MiB": None if peak is None else f"{peak / _MIB:.1f}",
        "seconds of selection": _rounded(result.seconds.select),
        "seconds of training": _rounded(result.seconds.train),
        "median step, ms": None if step is None else f"{1000 * step:.1f}",
        "steps": result.steps,
    }


def _evaluated(record: Record) -> dict[str, str]:
    """The main metric of every task of lm-evaluation-harness that the run was evaluated on."""
    names = Names([record])
    main = ((one, main_metric(result), result.metrics) for one, result in newest(record.result).items())
    return {
        escape.markdown(f"{names.title(one, key)} (lm-eval)"): f"{value:.4f}"
        for one, key, values in main
        if key is not None and (value := values.get(key)) is not None
    }


def _rounded(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.1f}"


def _table(rows: dict[str, Any]) -> str:
    """A Markdown table of what is known; a value that was not measured has no row. Keys are Markdown already."""
    known = [f"| {key} | {escape.markdown(value)} |" for key, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *known])
