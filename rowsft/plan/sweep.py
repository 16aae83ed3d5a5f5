"""Peak memory against a setting, planned for a list of values."""

from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from rowsft.config.compose import compose
from rowsft.config.overrides import swept_values
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.plan import Plan, plan
from rowsft.plan.lengths import Lengths
from rowsft.progress import bar


def sweep(
    overrides: Sequence[str], setting: str, lengths_of: Callable[[DictConfig], Lengths | None] = lambda config: None
) -> dict[str, Plan]:
    """A plan for each value of `setting`, "key=a,b,c". lengths_of: the examples' lengths under a configuration.

    Raises UserError for a setting without values.
    """
    key, values = swept_values(setting)
    if not key or not values:
        raise UserError(f"--sweep {setting}: expected a key with values, such as budget.rows=8,16,32")
    plans = {}
    for value in bar("planning")(values):
        config = compose([*overrides, f"{key}={value}"])
        plans[f"{key}={value}"] = plan(config, trainer_settings(config), lengths=lengths_of(config))
    return plans
