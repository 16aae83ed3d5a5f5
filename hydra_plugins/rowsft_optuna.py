"""hydra/sweeper=optuna: hydra-optuna-sweeper, whose trials are jobs of a sweep (rowsft/sweep/study.py scores them)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """The plugin's sweeper between our launcher and our score. settings: keys of conf/hydra/sweeper/optuna.yaml."""

    def __init__(self, **settings: Any) -> None:
        import optuna
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

        # What it says of each trial is said in a line of ours.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        unused = {"search_space": None, "custom_search_space": None}
        self.params: dict[str, Any] = settings["params"] or {}
        # A larger score is better, and a trial without one is no failure of the study.
        self.sweeper = OptunaSweeper(direction="maximize", max_failure_rate=1.0, **unused, **settings).sweeper

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run the trials; returns their exit codes as values, as a sweep does."""
        from rowsft.sweep.study import Study

        study = Study(self.sweeper.launcher, [*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        self.sweeper.launcher = study
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sweeper.sweep(arguments)
        study.conclude(self.folder / "optimization_results.yaml")
        return [study.returns]
