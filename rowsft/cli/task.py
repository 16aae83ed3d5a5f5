"""`rowsft task`: which tasks there are, and what the examples of one become before a model reads them."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rowsft.cli.arguments import add_config_folder
from rowsft.cli.terminal import console, shown, without_warnings
from rowsft.errors import UserError
from rowsft.output import redact

if TYPE_CHECKING:
    from rowsft.tasks.inspection import Inspection

HELP = "list tasks; show one: examples as a model reads them, lengths, leaks"
SPLITS = ("train", "validation", "test")
# By kind of head, whose tokenizer reads where no model is named: packaged ones. Others take that of conf/config.yaml.
_MODELS = {"causal_lm": "smollm2_135m", "image_classification": "vits_focus"}
MARKS = """\
marks in examples:
  a|b      where one token ends          ‹</s>›   a special token
  ·        a blank                       ⏎ ⇥      a line break, a tab
  ⟦a|b⟧    what carries loss: coloured in a terminal, in these brackets elsewhere
"""


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft task` and its subcommands."""
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    about = "The names that task= takes, with a line on each."
    listing = subparsers.add_parser("list", help="the tasks there are", description=about)
    listing.set_defaults(act=_list)
    _add_shared(listing)
    raw = argparse.RawDescriptionHelpFormatter
    show = subparsers.add_parser("show", help="what a task's examples become", formatter_class=raw, epilog=MARKS)
    show.set_defaults(act=_show)
    show.description = (
        "Examples of each split as a model reads them, and of all of them: how many, their lengths in tokens,\n"
        "how many are longer than task.max_length, classes, and what the splits share. Reads no weights."
    )
    show.add_argument("name", metavar="NAME", help="a task that `rowsft task list` names")
    show.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, as of `rowsft run`")
    show.add_argument("--examples", type=_count, default=3, metavar="N", help="render N of a split (default: 3)")
    show.add_argument("--split", choices=SPLITS, help="render examples of this split alone")
    _add_shared(show)


def run(parsed: argparse.Namespace) -> int:
    """Do what was asked. Raises UserError for a task that is unknown or whose data are refused."""
    return parsed.act(parsed)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_config_folder(parser)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of examples, 0 or more")
    return int(text)


def _list(parsed: argparse.Namespace) -> int:
    from rowsft import config_folders

    about = {name: config_folders.about("task", name) for name in config_folders.names("task")}
    if parsed.json:
        print(json.dumps(about, indent=1))
        return 0
    width = max(map(len, about))
    for name, line in about.items():
        print(f"{shown(name):<{width}}  {shown(line)}".rstrip())
    return 0


def _show(parsed: argparse.Namespace) -> int:
    with without_warnings():
        inspection, model = _inspected(parsed)
        if parsed.json:
            found = redact.config({"model": model, **asdict(inspection)})
            print(json.dumps(found, indent=1))
        else:
            from rowsft.cli.task_text import show_inspection

            show_inspection(inspection, model, console())
    if inspection.is_packaged and inspection.leaks:
        leak = inspection.leaks[0]
        raise UserError(
            f"task={parsed.name}: its data are packaged, and {leak.count} examples of {leak.later} are in "
            f"{leak.earlier} too ({', '.join(leak.pairs[0])}); expected none: give each split data of its own"
        )
    return 0


def _inspected(parsed: argparse.Namespace) -> tuple["Inspection", str]:
    """What was found, and the source of the tokenizer."""
    from rowsft.config.compose import compose
    from rowsft.config.instantiate import instantiated

    overrides = [f"task={parsed.name}", *parsed.overrides]
    if any(text.lstrip("+").startswith("task=") for text in parsed.overrides):
        raise UserError(f"task show {parsed.name}: names another task too; give one name")
    # Wrong names are told before torch is imported.
    config = compose(overrides)

    from rowsft.models.processor import load_processor
    from rowsft.progress import bar
    from rowsft.tasks import Task
    from rowsft.tasks.inspection import inspect

    task = instantiated("task", config.task, Task)
    if not any(text.startswith("model=") for text in parsed.overrides) and task.head.name in _MODELS:
        config = compose([*overrides, f"model={_MODELS[task.head.name]}"])
    processor = load_processor(config.model, task.head)
    splits = None if parsed.split is None else [parsed.split]
    found = inspect(task, processor, parsed.examples, splits, bar("tokenising"))
    return found, shown(config.model.source)
