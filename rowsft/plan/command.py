"""`rowsft plan`: a plan printed, for people or for programs."""

import json
import sys

from omegaconf import DictConfig
from rich.console import Console

from rowsft.errors import UserError
from rowsft.plan import plan
from rowsft.plan.advice import ways_out
from rowsft.plan.fit import CARDS_GB
from rowsft.plan.text import as_json, show
from rowsft.settings import TrainerSettings


def run(config: DictConfig, settings: TrainerSettings, json_only: bool, card_gb: float | None) -> int:
    """Print the plan of a configuration, and what to change where no card (or not `card_gb`) holds it.

    Returns 0. Raises UserError for what cannot be planned.
    """
    if card_gb is not None and card_gb <= 0:
        raise UserError(f"--card {card_gb:g}: expected the card's memory in GB, such as 24")
    planned = plan(config, settings)
    if json_only:
        print(json.dumps(as_json(planned), indent=1))
        return 0
    card = card_gb or max(CARDS_GB)
    advice = []
    if planned.scene.gpu and not planned.demand.fits(card):
        advice = [f"To fit {card:g} GB:", *ways_out(planned, lambda changes: plan(config, settings, changes), card)]
    show(planned, Console(width=None if sys.stdout.isatty() else 120), advice)
    return 0
