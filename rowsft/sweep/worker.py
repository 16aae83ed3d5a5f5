"""What a worker of Slurm or Ray does with a job: run it in a fresh process, as the sweep would on its own machine."""

import base64
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from rowsft import config_folders
from rowsft.errors import UserError, one_line
from rowsft.output import redact
from rowsft.sweep import launcher, under_way

#: The one key of the configuration that an engine carries.
KEY = "job"


@dataclass(frozen=True)
class Ended:
    """How a job ended on a worker. code: exit status of `rowsft run`. why: in a line, empty where the run is done."""

    code: int
    why: str
    host: str


@dataclass(frozen=True)
class Work:
    """Called by an engine, on a worker, with the configuration that holds a job's overrides and nothing else.

    folder: where the sweep was started; paths in overrides are relative to it. config_folder: the user's own
    configurations, None where there are none. rerun: as `rowsft sweep --rerun`. beside: how many jobs run at once.
    """

    folder: str
    config_folder: str | None
    rerun: bool
    beside: int

    def __call__(self, config: DictConfig) -> Ended:
        """Run the job; its end, however bad, is what is returned."""
        try:
            code, why = self._run(unpacked(config[KEY]))
        except (UserError, OSError) as error:
            code, why = 2, one_line(str(error))
        return Ended(code, redact.text(why), socket.gethostname())

    def _run(self, overrides: list[str]) -> tuple[int, str]:
        if not Path(self.folder).is_dir():
            raise UserError(f"{self.folder}: not found on {socket.gethostname()}; workers need the sweep's own folder")
        # The worker may be used again: for another folder.
        os.chdir(self.folder)
        if self.config_folder is not None:
            os.environ[config_folders.VARIABLE] = self.config_folder
        under_way.begin(self.rerun, self.beside)
        (code,) = launcher.run_jobs([overrides], 1, None)
        return code, under_way.sweep.reasons.get(1, "")


def packed(overrides: list[str]) -> str:
    """Return a job's overrides as an engine carries them: one override without a character that Hydra would read."""
    return f"{KEY}={base64.urlsafe_b64encode(json.dumps(overrides).encode()).decode()}"


def unpacked(text: str) -> list[str]:
    """Return what `packed` was given."""
    return json.loads(base64.urlsafe_b64decode(text))
