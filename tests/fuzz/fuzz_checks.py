"""One fuzz case run through the command line in this process, and what it may not do."""

import contextlib
import io
import os
import re
import shlex
import signal
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import constants

from rowsft.cli.main import main

# CPU seconds; the slowest case takes about two.
MOST_SECONDS = 30
_PLAIN = re.compile(r"(\+{0,2})([a-z_]+(?:\.[A-Za-z_]\w*)*)=(-?[1-9]\d{0,8}|true|false|[A-Za-z]\w*)")


@dataclass(frozen=True)
class Case:
    """A command line. statuses: the exit statuses that it may have. about: what to say of files that were made for it.

    keeps: the folders that it may not change when it ends with status 2.
    """

    arguments: list[str]
    statuses: frozenset[int] = frozenset({0, 2})
    about: str = ""
    keeps: tuple[Path, ...] = ()
    warnings: bool = False
    ends: set[int] = field(default_factory=set)

    def command(self) -> str:
        """What a shell repeats it by."""
        return shlex.join(["rowsft", *self.arguments]) + (f"   # {self.about}" if self.about else "")


class TookTooLong(BaseException):
    """A case used more CPU than MOST_SECONDS."""


def broken_rules(case: Case) -> list[str]:
    """What the case did that no command line may do; empty where all is well. Adds its exit status to `case.ends`."""
    before = [listing(folder) for folder in case.keeps]
    status, out, err = _run(case.arguments)
    if isinstance(status, str):
        return [status]
    case.ends.add(status)
    found = []
    if status not in case.statuses:
        found.append(f"exit status {status}, expected one of {sorted(case.statuses)}; standard error: {err[-500:]!r}")
    if "Traceback" in err:
        found.append(f"a traceback: {err[-500:]!r}")
    if status == 2:
        lines = err.split("\n")[:-1]
        if case.warnings:
            lines = [line for line in lines if "warning" not in line and ": skipped" not in line]
        if len(lines) != 1 or not lines[0].startswith("rowsft: error: ") or not err.endswith("\n"):
            found.append(f"{len(lines)} lines on standard error, expected one 'rowsft: error: ...': {err[:500]!r}")
        elif not lines[0].isprintable() or len(lines[0]) > 5000:
            found.append(f"a line that no terminal should get: {lines[0][:300]!r}")
        for folder, held in zip(case.keeps, before, strict=True):
            if listing(folder) != held:
                found.append(f"{folder} changed: {sorted(set(listing(folder)) ^ set(held))[:5]}")
    if status == 0 and "--show-config" in case.arguments:
        found += _ignored(case.arguments, out)
    return found


def listing(folder: Path) -> list[tuple[str, int]]:
    """Every file under `folder` with its size; [] where there is no such folder."""
    paths = sorted(folder.rglob("*")) if folder.exists() else []
    return [(str(path.relative_to(folder)), path.stat().st_size if path.is_file() else -1) for path in paths]


def _run(arguments: list[str]) -> tuple[int | str, str, str]:
    out, err = io.StringIO(), io.StringIO()
    usual = signal.signal(signal.SIGVTALRM, _too_long)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(list(arguments))
        status: int | str = "main returned without an exit status"
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else f"exit status {stop.code!r}"
    except TookTooLong:
        status = f"more than {MOST_SECONDS} seconds of CPU"
    except BaseException:
        status = f"a traceback: {traceback.format_exc(limit=-3)}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, usual)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return status, out.getvalue(), err.getvalue()


def _too_long(*_) -> None:
    raise TookTooLong


def _ignored(arguments: list[str], shown: str) -> list[str]:
    """Settings of the command line that the configuration which was printed does not show; the last of a key holds."""
    config = yaml.safe_load(shown)
    asked = {}
    for text in arguments:
        found = _PLAIN.fullmatch(text)
        if found and found[2].split(".")[0] in config and "." in found[2]:
            asked[found[2]] = found[3]
    missing = []
    for key, wanted in asked.items():
        node = config
        for part in key.split("."):
            node = node.get(part, "(absent)") if isinstance(node, dict) else "(absent)"
        if str(node).lower() != wanted.lower() and (node is not None or wanted != "null"):
            missing.append(f"{key}={wanted} was ignored: the configuration has {node!r}")
    return missing


def outside(folder: Path):
    """The block runs with `folder` as the working directory: what a case writes by a relative path lands there."""
    return contextlib.chdir(folder)


def quiet_hub() -> None:
    """No case may look for a network."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    # Read once, at import: other tests of this process may have imported it.
    constants.HF_HUB_OFFLINE = True
