"""Peak memory against a setting, planned for a list of values."""

from collections.abc import Sequence

from rowsft.compose import compose, swept_values
from rowsft.errors import UserError
from rowsft.plan import Plan, plan
from rowsft.progress import bar
from rowsft.settings import trainer_settings


def sweep(overrides: Sequence[str], setting: str) -> dict[str, Plan]:
    """A plan for each value of `setting`, "key=a,b,c".

    Raises UserError for a setting without values.
    """
    key, values = swept_values(setting)
    if not key or not values:
        raise UserError(f"--sweep {setting}: expected a key with values, such as budget.rows=8,16,32")
    plans = {}
    for value in bar("planning")(values):
        config = compose([*overrides, f"{key}={value}"])
        plans[f"{key}={value}"] = plan(config, trainer_settings(config))
    return plans
