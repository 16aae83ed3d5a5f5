"""A sweep with a tuning stage, whole, on a launcher that is not ours; and killed in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill import table

from rowsft import report
from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.store import Store

pytestmark = pytest.mark.whole

FORKING = Path(__file__).parents[1] / "forking"
RATES = (1e-3, 1e-2)


def command(workshop, store):
    """Two methods at two budgets; full fine-tuning has none, so its grid serves both."""
    given = ("store=", "budget.rows", "trainer.steps", "trainer.learning_rate", "trainer.memory")
    shared = [text for text in workshop.overrides("bert") if not text.startswith(given)]
    tune = ["tune.lr=[1e-3,1e-2]", "tune.extensions=1", "tune.refine=false"]
    swept = ["method=row_sft,full", "budget.rows=1,3", "seed=1", "trainer.steps=8", "trainer.memory_probe_steps=0"]
    return ["sweep", *shared, f"store={store}", *swept, *tune, "hydra/launcher=forking", "experiment_name=tuned"]


def start(workshop, store, *changes):
    path = os.pathsep.join([str(FORKING), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "rowsft.cli", *command(workshop, store), *changes],
        cwd=workshop.folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def whole(workshop, tmp_path_factory):
    store = tmp_path_factory.mktemp("whole") / "runs"
    process = start(workshop, store)
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return store, said


def test_every_setting_is_run_at_the_rate_that_its_grid_chose(workshop, whole):
    store, said = whole
    grid, final = Store(store).runs("tuned.tuning"), Store(store).runs("tuned")
    # Two rates and, the better one lying at an edge of two, one more: for row_sft at 1, at 3, and for full once.
    assert (len(grid), len(final)) == (9, 3) and said.splitlines()[-1] == "4 jobs: 4 done, 0 not"
    for record in grid:
        assert list(record.result.metrics) == ["validation"] and record.config["seed"] == 0
    for record in final:
        assert record.config["seed"] == 1 and set(record.result.metrics) == {"validation", "test"}
        mine = [
            (-run.result.metrics["validation"]["accuracy"], run.config["trainer"]["learning_rate"])
            for run in grid
            if run.config["method"]["name"] == record.config["method"]["name"]
            and (run.config["budget"] == record.config["budget"] or record.config["method"]["name"] == "full")
        ]
        rate = record.config["trainer"]["learning_rate"]
        assert len(mine) == 3 and rate == min(mine)[1]
        # By hand it would be the same run.
        taken = ("tune.", "hydra/", "experiment_name", "method=", "budget.", "seed=")
        shared = [text for text in command(workshop, store)[1:] if not text.startswith(taken)]
        by_hand = [*shared, f"method={record.config['method']['name']}", f"trainer.learning_rate={rate}", "seed=1"]
        spec = run_spec(compose([*by_hand, f"budget.rows={record.config['budget']['rows']}"]))
        assert spec.run_id == record.id


def test_a_sweep_killed_in_its_tuning_stage_goes_on_to_the_same_table(workshop, whole, tmp_path):
    store = tmp_path / "runs"
    for enough in (2, 7):
        process = start(workshop, store)
        while process.poll() is None and sum(record.result is not None for record in Store(store).runs()) < enough:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(workshop, store)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert table(store) == table(whole[0])
    done = [attempt for record in Store(store).runs() for attempt in record.attempts if attempt.state == "done"]
    assert len(done) == 12, "no run is made twice"
    lines = {
        place: [(one.title, one.value) for one in report.sections(place, "tuned")[0].lines]
        for place in (store, whole[0])
    }
    assert lines[store] == lines[whole[0]]


def test_a_setting_that_no_rate_fits_is_left_out_and_the_rest_goes_on(workshop, whole):
    process = start(workshop, whole[0], "method=row_sft", "budget.rows=1,99")
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert errors.count("rows=99 exceeds") == 2, "once for each rate"
    lines = said.splitlines()
    assert lines[-3] == "not done:" and lines[-1] == "2 jobs: 1 done, 1 not"
    why = "left out, no learning rate: the run at 0.001 was refused or left no record, see above"
    assert lines[-2] == f"  tuned: budget.rows=99: {why}"


def test_alphas_are_tuned_beside_rates_also_by_a_sweep_that_was_killed(workshop, tmp_path):
    store = tmp_path / "runs"
    asked = ["method=row_sft,lora", "budget.rows=1", "tune.alpha=[4,16]", "tune.extensions=0"]
    process = start(workshop, store, *asked)
    while process.poll() is None and sum(record.result is not None for record in Store(store).runs()) < 3:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    process = start(workshop, store, *asked)
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    grid, final = Store(store).runs("tuned.tuning"), Store(store).runs("tuned")
    done = [attempt for record in (*grid, *final) for attempt in record.attempts if attempt.state == "done"]
    assert (len(grid), len(final), len(done)) == (6, 2, 8), "two rates, and two more at another alpha for LoRA"
    own = next(record.config for record in final if record.config["method"]["name"] == "lora")
    tried = {
        (
            -run.result.metrics["validation"]["accuracy"],
            run.config["trainer"]["learning_rate"],
            run.config["method"]["alpha"],
        )
        for run in grid
        if run.config["method"]["name"] == "lora"
    }
    assert len(tried) == 4 and (own["trainer"]["learning_rate"], own["method"]["alpha"]) == min(tried)[1:]
    assert own["method"]["scaling"] is None and own["tune"]["alpha"] == [4, 16]
    (found,) = report.sections(store, "tuned")
    assert sorted(one.alphas for one in found.tuned.values()) == ["-", f"{own['method']['alpha']:g} of 4, 16"]
    assert [len(one.runs) for one in found.tuned.values()] == [2, 4] and "tuned: method=lora: alpha " in said
