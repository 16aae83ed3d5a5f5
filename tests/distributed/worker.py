"""Many runs in one group of processes, for a start of two takes longer than a run: python worker.py CASES.json.

Started by torchrun's launcher. CASES.json: a list of {"overrides": [...], "stop": step or null}.
"""

import json
import sys
from pathlib import Path

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.runner.ranks import joined
from rowsft.runner.run import run
from rowsft.runner.trainer import OrderedTrainer


class Stopped(Exception):
    """Every process at the same step."""


def stopping(at: int | None):
    log = OrderedTrainer.log

    def stopped(self, logs, start_time=None):
        log(self, logs, start_time)
        if at is not None and "loss" in logs and self.state.global_step >= at:
            raise Stopped(f"at step {at}")

    return log, stopped


def main(path: str) -> None:
    group = None
    for case in json.loads(Path(path).read_text()):
        config = compose(case["overrides"])
        settings = trainer_settings(config)
        group = group or joined(settings)
        ranks = group.under(settings.strategy)
        log, OrderedTrainer.log = stopping(case.get("stop"))
        try:
            outcome = run(run_spec(config), settings, False, lambda text: None, None, ranks)
            if group.is_first:
                print(outcome.state, outcome.message, case["overrides"], flush=True)
        except Stopped:
            assert not group.is_first
        finally:
            OrderedTrainer.log = log
    assert group is not None
    group.end()


if __name__ == "__main__":
    main(sys.argv[1])
