"""hydra/sweeper=optuna: hydra-optuna-sweeper, whose trials are jobs of a sweep (rowsft/sweep/study.py scores them)."""

import logging
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
        logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.ERROR)
        unused = {"search_space": None, "custom_search_space": None}
        self.settings = settings
        # A larger score is better, and a trial without one is no failure of the study.
        self.sweeper = OptunaSweeper(direction="maximize", max_failure_rate=1.0, **unused, **settings).sweeper

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from rowsft.sweep.study import check_settings

        check_settings(self.settings)
        self.sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run the trials; returns their exit codes as values, as a sweep does."""
        from rowsft.sweep.study import Study

        params: dict[str, Any] = self.settings["params"] or {}
        study = Study(self.sweeper.launcher, [*(f"{key}={value}" for key, value in params.items()), *arguments])
        self.sweeper.launcher = study
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = self._earlier()
        self.sweeper.sampler = self._sampler(len(earlier))
        try:
            self.sweeper.sweep(arguments)
        except ValueError:
            # Optuna's, where it has no score to choose by: what became of the trials is to be said all the same.
            if not study.trials or any(trial.score is not None for trial in study.trials):
                raise
        before = max(earlier, key=lambda trial: trial.value, default=None)
        known = before and [f"{key}={value}" for key, value in {**before.params, **before.user_attrs}.items()]
        study.conclude(self.folder / "optimization_results.yaml", known)
        return [study.returns]

    def _sampler(self, done: int) -> Any:
        """Return the sampler; in a study that has trials already its draws are others than those of the first call."""
        sampler = self.settings["sampler"]
        seed = sampler.keywords.get("seed")
        return sampler() if seed is None else sampler(seed=seed + done)

    def _earlier(self) -> list[Any]:
        """Return the trials with a score that the study has from earlier calls."""
        import optuna

        name, storage = self.settings["study_name"], self.settings["storage"]
        if name is None or storage is None:
            return []
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
        return [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
