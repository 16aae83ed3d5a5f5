"""Which extra of the package brings what a choice of configuration needs; said before Hydra asks for it."""

from importlib.util import find_spec

from rowsft.errors import UserError

#: (group, name) -> what is imported for it, the extra that installs it.
_NEEDS = {
    ("hydra/launcher", "slurm"): ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    ("hydra/launcher", "ray"): ("hydra_plugins.hydra_ray_launcher", "ray"),
    ("hydra/sweeper", "optuna"): ("hydra_plugins.hydra_optuna_sweeper", "optuna"),
}


def check_extra(module: str, extra: str, setting: str) -> None:
    """Raise UserError where `setting` needs a package of the extra that is not installed."""
    if find_spec(module) is None:
        raise UserError(f"{setting}: needs {module}, which is not installed; pip install 'rowsft[{extra}]'")


def check_installed(group: str, name: str) -> None:
    """Raise UserError where `group=name` needs a plugin that is not installed."""
    module, extra = _NEEDS.get((group, name), ("", ""))
    try:
        found = not module or find_spec(module) is not None
    except ImportError:
        found = False
    if not found:
        raise UserError(f"{group}={name}: needs a plugin that is not installed; pip install 'rowsft[{extra}]'")
