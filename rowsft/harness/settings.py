"""What the harness is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rowsft.errors import UserError, shortened


@dataclass(frozen=True)
class Settings:
    """tasks: the harness's names of tasks or groups. include_path: a folder with tasks of one's own, as YAML files of
    the harness. limit: the first examples of each task alone. command: how the evaluation was asked for.
    """

    tasks: Sequence[str]
    include_path: Path | None = None
    limit: int | None = None
    batch_size: int = 8
    command: str | None = None

    def __post_init__(self) -> None:
        names = [name.strip() for name in self.tasks]
        if not names or not all(names):
            raise UserError(f"--lm-eval {shortened(','.join(self.tasks))}: expected names of tasks, like boolq,piqa")
        if len(set(names)) < len(names):
            raise UserError(f"--lm-eval {shortened(','.join(names))}: a task is named twice; name each once")
        if self.include_path is not None and not self.include_path.is_dir():
            raise UserError(
                f"--include-path {self.include_path}: no such folder; name one with the harness's YAML files"
            )
        object.__setattr__(self, "tasks", names)
