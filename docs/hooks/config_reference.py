"""The configuration reference, made from the comments in conf/: what stands above a key is what the page says of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

#: The order of the page; groups that are not named here follow.
GROUPS = ("method", "model", "task", "budget", "trainer", "tracker", "experiment", "debug", "hydra")
#: Groups whose files set keys of other groups: shown as they are written.
WHOLE = ("experiment", "debug", "hydra")
#: Keys that are not a setting of the file's own group.
APART = ("_target_", "defaults", "hydra")


@dataclass(frozen=True)
class Key:
    """A setting: its full name, its default as YAML, and the comment above it.

    A key without a comment that follows another key directly has "" here: the comment before holds for both.
    """

    name: str
    default: str
    meaning: str


def reference(conf: Path) -> str:
    """Return the page's body as Markdown: a section for each group, a part for each file, a row for each key."""
    present = [path.name for path in conf.iterdir() if path.is_dir()]
    parts = ["## The root", *_file(conf, conf / "config.yaml", {})]
    for group in sorted(present, key=lambda name: (GROUPS.index(name) if name in GROUPS else len(GROUPS), name)):
        parts.append(f"## {group}")
        known: dict[str, Key] = {}
        for path in _files(conf / group):
            name = path.relative_to(conf / group).with_suffix("").as_posix()
            title = f"{group}: shared by others" if path.stem.startswith("_") else f"{group}={name}"
            parts += [f"### {title}", *(_whole(conf, path) if group in WHOLE else _file(conf, path, known))]
            known = {key.name: key for key in keys(conf, path)} | known
    return "\n\n".join(parts) + "\n"


def keys(conf: Path, path: Path) -> list[Key]:
    """Return the settings of one file in order, nested ones under their full names."""
    text = path.read_text(encoding="utf-8")
    group = path.relative_to(conf).parts[0] if path.parent != conf else ""
    return list(_keys(yaml.compose(text), group, text))


def _keys(node: yaml.Node, prefix: str, text: str) -> Iterator[Key]:
    lines = text.splitlines()
    for key, value in node.value:
        if key.value in APART:
            continue
        full = f"{prefix}.{key.value}" if prefix else key.value
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        yield Key(full, "" if nested else _default(value, text), _above(lines, key.start_mark))
        if nested:
            yield from _keys(value, full, text)


def _files(folder: Path) -> list[Path]:
    """The files of a group: `default` first, then `_base` and the others; what a file builds on stands before it."""
    bases = ("default", "_base")
    ordered: dict[Path, None] = {}

    def add(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        if folder.name not in WHOLE:
            for base in _builds_on(yaml.safe_load(text) or {}, folder.name):
                # Of its own folder, or of the group's.
                for name in (path.parent / f"{base}.yaml", folder / f"{base}.yaml"):
                    if name.is_file() and name != path:
                        add(name)
        ordered.setdefault(path)

    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (path.stem not in bases, path.as_posix())):
        add(path)
    return list(ordered)


def _builds_on(plain: dict, group: str) -> list[str]:
    """The files of the group that a file names in its defaults, without the package that they go to."""
    names = [base for base in plain.get("defaults", []) if isinstance(base, str) and base != "_self_"]
    return [name.partition("@")[0].removeprefix(f"/{group}/") for name in names]


def _file(conf: Path, path: Path, known: dict[str, Key]) -> list[str]:
    """A file's comment and its table. `known`: the group's keys so far; a key with the same default is not repeated."""
    text = path.read_text(encoding="utf-8")
    plain = yaml.safe_load(text)
    parts = [f"`conf/{path.relative_to(conf).as_posix()}`", _about(text)]
    if bases := _builds_on(plain, path.relative_to(conf).parts[0]):
        parts.append(f"Builds on `{'`, `'.join(bases)}` and sets what differs.")
    if isinstance(target := plain.get("_target_"), str):
        parts.append(f"Class: `{target}`")
    rows: list[list[Key]] = []
    own = keys(conf, path)
    for key in own:
        if key.name in known and not key.meaning:
            key = replace(key, meaning=known[key.name].meaning)
        if key.meaning or not rows:
            rows.append([])
        rows[-1].append(key)
    if all(key.name in known for key in own):
        rows = [row for row in rows if any(key.default != known[key.name].default for key in row)]
        parts += ["Other keys as above."] * (len(own) > sum(map(len, rows)))
    if rows:
        parts.append("\n".join(["| key | default | meaning |", "|---|---|---|", *map(_row, rows)]))
    return parts


def _whole(conf: Path, path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8").rstrip()
    return [f"`conf/{path.relative_to(conf).as_posix()}`", f"```yaml\n{text}\n```"]


def _row(together: list[Key]) -> str:
    names = "<br>".join(f"`{key.name}`" for key in together)
    defaults = "<br>".join(f"`{_cell(key.default)}`" if key.default else "" for key in together)
    return f"| {names} | {defaults} | {_cell(_prose(together[0].meaning))} |"


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def _about(text: str) -> str:
    """What the comment at the top says of the file: all of it above `_target_` and `defaults`, else its first line."""
    top = [line for line in _comment(text.splitlines(), len(_top(text)), 0) if not line.startswith("@package")]
    special = re.match(rf"({'|'.join(APART)}):", "\n".join(text.splitlines()[len(_top(text)) :]))
    return _prose(" ".join(top if special else top[:1]))


def _top(text: str) -> list[str]:
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:first]


def _above(lines: list[str], mark: yaml.Mark) -> str:
    """The comment right above a key, at its indentation; a file's first line is about the file."""
    said = _comment(lines, mark.line, mark.column)
    return " ".join(said[1:] if len(said) == mark.line else said)


def _comment(lines: list[str], end: int, column: int) -> list[str]:
    start = end
    while start and re.match(rf" {{{column}}}#", lines[start - 1]):
        start -= 1
    return [line.strip().removeprefix("#").strip() for line in lines[start:end]]


def _default(value: yaml.Node, text: str) -> str:
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        return "; ".join(item.value for item in value.value)
    if isinstance(value, yaml.ScalarNode) and value.style in (">", "|"):
        return value.value.strip()
    return text[value.start_mark.index : value.end_mark.index].strip()


def _prose(text: str) -> str:
    """A comment as Markdown: outside code, what looks like HTML, emphasis or a formula is neither."""
    marks = {"<": "&lt;", "$": "&#36;", "*": "\\*", "_": "\\_"}
    parts = text.split("`")
    return "`".join(
        part if place % 2 else re.sub(r"[<$*_]", lambda m: marks[m[0]], part) for place, part in enumerate(parts)
    )
