"""All that the suite needs of Hydra's private modules, in one place: an instance that searches two folders.

Hydra's public `initialize_config_dir` takes one folder. A `SearchPathPlugin` could add the second, but Hydra would load
it into every program of the environment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra

__all__ = ["Hydra", "open_hydra"]


@contextmanager
def open_hydra(shipped: Path, own: Path | None) -> Iterator[Hydra]:
    """An instance of Hydra that searches `shipped` and, where there is one, a user's `own` folder.

    Hydra keeps one instance a process: a caller's own, or the sweep's around a job's, is put back afterwards.
    """
    search_path = create_config_search_path(str(shipped))
    if own is not None:
        search_path.prepend("own", f"file://{own}", anchor="schema")
    holder = GlobalHydra.instance()
    before, holder.hydra = holder.hydra, None
    try:
        yield Hydra.create_main_hydra2("rowsft", search_path)
    finally:
        holder.hydra = before
