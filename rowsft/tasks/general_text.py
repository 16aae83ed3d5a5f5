"""A general text that no run trains on: what a model has forgotten of it is told by its loss before and after."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rowsft.assets import python_reference
from rowsft.batch import IGNORED
from rowsft.errors import UserError, shortened
from rowsft.tasks import Task
from rowsft.tasks.heads import CAUSAL_LM
from rowsft.tasks.language_modelling import LanguageModelling
from rowsft.tasks.reading import (
    EXPECTED,
    Table,
    canonical,
    is_file_name,
    is_saved,
    read_file,
    read_hub,
    read_saved,
    read_split_files,
)
from rowsft.tasks.running_text import pieces

_KEY = "trainer.forgetting"


class GeneralText(LanguageModelling):
    """The first `limit` examples of one text, all of which are evaluated: `evaluate` of LanguageModelling.

    path: a file, a folder of files or a saved one, or a hub id (with `config` and `revision`); `split` is that of a
    folder or hub data set. Or python_reference.NAME, whose examples are topics. It is read by `read`.
    """

    def __init__(
        self,
        path: str,
        config: str | None,
        revision: str | None,
        split: str,
        column: str,
        documents: str,
        max_length: int,
        stride: int | None,
        limit: int | None,
    ):
        super().__init__("general text", max_length, {}, column, documents, "\n", stride)
        self.path, self.config, self.revision = path, config, revision
        self.split, self.limit = split, limit
        #: What `read` has read, each with its id and text.
        self.examples: list[dict] = []
        #: Of the batch that the collator made last: the tokens that are predicted (batch, length), each once in all.
        self.counted = torch.zeros(0, 0, dtype=torch.bool)

    def read(self) -> None:
        """Read the examples. Raises UserError for what cannot be read."""
        examples = (self._topics() if self.path == python_reference.NAME else self._rows())[: self.limit]
        if not examples:
            raise UserError(f"{self._where}: holds no text")
        self.examples = examples

    def _topics(self) -> list[dict]:
        end = self.separator
        return [{"id": name, "text": text.strip() + end} for name, text in python_reference.topics().items()]

    def _rows(self) -> list[dict]:
        table = self._table()
        return self._texts(pieces(table) if self.documents == "lines" else table)

    @property
    def sha256(self) -> str:
        """Of the examples' texts, one after another."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(example["text"].encode(errors="surrogatepass"))
        return digest.hexdigest()

    @property
    def _where(self) -> str:
        return f"{_KEY}.path={shortened(self.path, 200)}"

    def _table(self) -> Table:
        path, columns = Path(self.path).expanduser(), [self.column]
        empty = "keep" if self.documents == "lines" else "refuse"
        if not path.is_dir() and not is_file_name(self.path):
            found = read_hub(self.path, self._where, self.config, self.revision, columns, self._choose, empty)
            return found["text"]
        for name in ("config", "revision"):
            if getattr(self, name) is not None:
                raise UserError(f"{_KEY}.{name}={getattr(self, name)}: is for a data set of the hub; set it to null")
        if is_saved(path):
            return read_saved(path, self._where, columns, "row", self._choose, empty)["text"]
        if path.is_dir():
            return read_split_files(path, self._where, columns, None, self._choose, None, empty)["text"]
        if not path.is_file():
            raise UserError(f"{self._where}: no such file; expected one with the ending {EXPECTED}")
        return read_file(path, self._where, columns, "row", None, empty)

    def _choose(self, names: Sequence[str]) -> dict[str, str]:
        """The wanted split, or the only one that there is."""
        wanted = [name for name in names if canonical(name) == canonical(self.split)]
        if not wanted and len(names) > 1:
            raise UserError(f"{_KEY}.split={self.split}: no such split; {self._where} has {', '.join(sorted(names))}")
        return {"text": (wanted or list(names))[0]}

    def collator(self, tokenizer, model=None, /) -> Callable[[list[dict]], dict[str, Any]]:
        """The parent's, which also keeps what the batch counts."""
        collate = super().collator(tokenizer, model)

        def collate_and_keep(encoded: list[dict]) -> dict[str, Any]:
            batch = collate(encoded)
            labels = batch["labels"]
            self.counted = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
            self.counted[:, -labels.shape[1] :] = labels != IGNORED
            return batch

        return collate_and_keep


def named_by(settings: Mapping[str, Any], task: Task) -> GeneralText | None:
    """The text that these settings (`trainer.forgetting`) name, not read yet; None where they name none.

    Raises UserError where `task` trains a model of another kind.
    """
    if settings["path"] is None:
        return None
    if task.head != CAUSAL_LM:
        raise UserError(
            f"{_KEY}.path={settings['path']}: is measured on causal language models, and task {task.name} trains a "
            f"{task.head.name} model; set it to null"
        )
    return GeneralText(**{key: value for key, value in settings.items() if key != "batch_size"})
