"""Secrets stay out of everything that is written: records, tables, pages, cards, dashboards, logs.

Three kinds are found: values of environment variables whose names say that they are secrets, texts in the form of a
known kind of token, and what stands where a secret stands (in a URL before the host, under a key such as `api_key`).
The run itself keeps the real values; its identity is that of the redacted configuration.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from rowsft.output import suite_words
from rowsft.output.secret_forms import (
    ASSIGNED,
    BARE_CREDENTIALS,
    CONNECTION_SECRET,
    IN_MAPPING,
    QUERY_SECRET,
    TOKENS,
    URL_CREDENTIALS,
    WANDB_KEY,
    is_address,
    is_revision,
    names_secret,
    variable_is_secret,
)

MASK = "***"
#: Shorter values are masked only where they are a whole value: as a part they would be found in anything.
_SHORTEST_PART = 6
_SHORTEST = 4
# What a variable says that has a secret's name and no secret.
_WORDS = frozenset(("default", "disabled", "enabled", "false", "none", "null", "optional", "required", "true", "unset"))
_LARGEST_TEXT_BYTES = 4 * 2**20
_VOCABULARIES = frozenset(("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"))
_TEXT_FILES = frozenset((".json", ".md", ".txt", ".yaml", ".yml", ".jinja", ".cfg", ".toml"))

# Values that an interpolation brought from such a variable, and credentials that stood in a configuration's URLs.
_interpolated: set[str] = set()
_credentials: set[str] = set()


def text(message: str) -> str:
    """A message, log line or traceback without secrets."""
    cleaned = _Known(_credentials).removed(message)
    cleaned = _without_forms(cleaned)
    cleaned = BARE_CREDENTIALS.sub(rf"\1{MASK}@", cleaned)
    return ASSIGNED.sub(rf"\1{MASK}", CONNECTION_SECRET.sub(rf"\1{MASK}", cleaned))


def config(mapping: Any) -> Any:
    """A mapping (a configuration, fields of a record) without secrets: the same keys, the same types elsewhere.

    Doing it twice changes nothing. Two configurations that differ in their secrets alone give the same.
    """
    own = set(_credentials_in(mapping))
    _credentials.update(own)
    return _cleaned(mapping, (), _Known(own))


def override(setting: str) -> str:
    """One override of a command line, `key=value`, without secrets."""
    key, sign, value = setting.partition("=")
    if sign and names_secret(key.lstrip("+~").rsplit(".", 1)[-1]):
        return f"{key}={MASK}"
    # Hydra's sweeper writes a backslash before what its grammar knows.
    setting, value = (re.sub(r"\\([:@/=])", r"\1", part) for part in (setting, value))
    cleaned = _Known(_credentials_in({key.rsplit(".", 1)[-1]: value})).removed(setting)
    cleaned = IN_MAPPING.sub(_masked_entry, _without_forms(cleaned))
    return BARE_CREDENTIALS.sub(rf"\1{MASK}@", cleaned) if sign and is_address(key.rsplit(".", 1)[-1]) else cleaned


def learn(raw: Any, resolved: Any) -> None:
    """Remember what interpolations of secret variables came to.

    raw, resolved: a configuration as plain data, before and after its interpolations were resolved.
    """
    if isinstance(raw, str):
        names = [name.strip("\"' ") for name in re.findall(r"oc\.env\s*:\s*([^,}]+)", raw)]
        secret = [name for name in names if "$" in name or variable_is_secret(name)]
        if secret:
            _interpolated.update(os.environ[name] for name in secret if name in os.environ)
            _interpolated.update(str(leaf) for _, leaf in _leaves(resolved))
    elif isinstance(raw, dict) and isinstance(resolved, dict):
        for key, value in raw.items():
            learn(value, resolved.get(key))
    elif isinstance(raw, list) and isinstance(resolved, list):
        for value, result in zip(raw, resolved, strict=False):
            learn(value, result)


def folder(path: Path) -> None:
    """Take secrets out of the small text files below `path`: libraries write down where a model came from."""
    known = _Known(_credentials)
    for file in path.rglob("*"):
        # A vocabulary may hold anything, and every entry of it counts.
        if file.suffix not in _TEXT_FILES or file.name in _VOCABULARIES or file.is_symlink() or not file.is_file():
            continue
        if file.stat().st_size > _LARGEST_TEXT_BYTES:
            continue
        content = file.read_bytes().decode("utf-8", "surrogateescape")
        cleaned = _without_forms.__wrapped__(known.removed(content))
        if cleaned != content:
            file.write_bytes(cleaned.encode("utf-8", "surrogateescape"))


class _Known:
    """Values that are secrets wherever they stand: those of the environment, of interpolations, and `more`."""

    def __init__(self, more: Iterable[str] = ()):
        values = {value.strip() for name, value in os.environ.items() if variable_is_secret(name)}
        values.update(match for value in os.environ.values() for match in _passwords(value))
        # A password may be any word; with one of the suite's own masked, a record would tell nothing.
        self.values = {
            value
            for value in {*values, *_interpolated, *more}
            if len(value) >= _SHORTEST
            and value.lower() not in _WORDS
            and not _is_path(value)
            and not suite_words.is_word(value)
        }
        # Each as it may stand in a text: as it is, in a URL, in JSON. Longest first: one may hold another.
        forms = {
            form
            for secret in self.values
            if len(secret) >= _SHORTEST_PART
            for form in (secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1])
        }
        self.forms = sorted(forms, key=lambda form: (-len(form), form))

    def removed(self, text: str) -> str:
        """The text with a mask in the place of each."""
        for secret in self.forms:
            if secret in text:
                if secret.isdigit():
                    text = re.sub(rf"(?<![\d.]){secret}(?![\d.])", MASK, text)
                else:
                    text = text.replace(secret, MASK)
        return text


def _is_path(value: str) -> bool:
    # A key file's name or a socket: what it holds is secret, where it lies is not.
    return value.startswith(("/", "~")) and Path(value).expanduser().exists()


def _cleaned(node: Any, path: tuple[str, ...], known: _Known) -> Any:
    if isinstance(node, Mapping):
        return {_key(key, known): _cleaned(value, (*path, str(key)), known) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_cleaned(value, path, known) for value in node]
    if isinstance(node, str):
        return _leaf(node, path, known)
    if isinstance(node, PurePath):
        return _leaf(str(node), path, known)
    if isinstance(node, int | float) and not isinstance(node, bool):
        return MASK if str(node) in _interpolated or _is_secret_place(path) else node
    return node


def _is_secret_place(path: tuple[str, ...]) -> bool:
    return any(names_secret(key) for key in path)


def _key(key: Any, known: _Known) -> Any:
    return _without_forms(known.removed(key)) if isinstance(key, str) else key


def _leaf(value: str, path: tuple[str, ...], known: _Known) -> str:
    last = path[-1] if path else ""
    if not value or value == MASK:
        return value
    if value in known.values or _is_secret_place(path) or (WANDB_KEY.fullmatch(value) and not is_revision(path)):
        return MASK
    cleaned = _without_forms(known.removed(value))
    return BARE_CREDENTIALS.sub(rf"\1{MASK}@", cleaned) if is_address(last) else cleaned


# A sweep's jobs have the same few texts.
@lru_cache(maxsize=4096)
def _without_forms(value: str) -> str:
    if "://" in value or ":/" in value:
        value = URL_CREDENTIALS.sub(r"\1", value)
        value = QUERY_SECRET.sub(rf"\1{MASK}", value)
    return TOKENS.sub(MASK, value)


def _credentials_in(node: Any) -> Iterator[str]:
    """Passwords in the URLs of a configuration, so that they are known where a message quotes them alone."""
    for key, leaf in _leaves(node):
        if isinstance(leaf, str) and "@" in leaf:
            yield from _of_users(URL_CREDENTIALS.finditer(leaf))
            if is_address(key):
                yield from _of_users(BARE_CREDENTIALS.finditer(leaf))


# A sweep asks for the same few hundred values a thousand times.
@lru_cache(maxsize=4096)
def _passwords(value: str) -> tuple[str, ...]:
    """Those in the value of any variable: of a proxy's or database's URL, of a connection string."""
    of_urls = _of_users(URL_CREDENTIALS.finditer(value)) if "@" in value else ()
    assigned = (match[2] for match in CONNECTION_SECRET.finditer(value)) if "=" in value else ()
    return (*of_urls, *(secret for secret in assigned if len(secret) >= _SHORTEST_PART))


def _of_users(credentials: Iterable[re.Match]) -> Iterator[str]:
    for match in credentials:
        user, _, password = match[2].rstrip("@").partition(":")
        secret = password or (user if len(user) >= 16 else "")
        if len(secret) >= _SHORTEST_PART:
            yield secret


def _masked_entry(match: re.Match) -> str:
    return f"{match[1]}{match[2]}{MASK}" if names_secret(match[1]) else match[0]


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(last key, value) of every text and number."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, str(name))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _leaves(value, key)
    elif node is not None and not isinstance(node, bool):
        yield key, node
