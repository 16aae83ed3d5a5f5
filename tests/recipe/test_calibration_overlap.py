"""trainer.calibration_overlap: scoring ends once the choice of rows holds still, and what was scored is shared."""

import pytest
import torch

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.report.overlap import selected
from rowsft.runner.run import run
from rowsft.selection.ids import Chosen, overlap
from rowsft.store import Store

pytestmark = pytest.mark.whole


def done(workshop, store, *overrides):
    quick = ["trainer.steps=1", "trainer.memory_probe_steps=0", "trainer.batch_size=2"]
    config = compose([*workshop.overrides("bert"), f"store={store}", *quick, *overrides])
    said = []
    outcome = run(run_spec(config), trainer_settings(config), rerun=False, say=said.append)
    assert outcome.state == "done", outcome.message
    return Store(store).get(outcome.run_id), said


@pytest.mark.parametrize("settings", [[], ["trainer.warm_head=2"]], ids=["fresh head", "warm head"])
def test_scoring_ends_with_the_choice_that_its_batches_make(workshop, tmp_path, settings):
    """The very choice of a run with that number of batches; and it holds still there, by a count made here."""
    record, said = done(
        workshop, tmp_path, "trainer.calibration_batches=16", "trainer.calibration_overlap=0.8", *settings
    )
    calibrated = record.result.calibrated
    assert calibrated.batches in (4, 8, 16)
    assert calibrated.overlap >= 0.8 or calibrated.batches == 16
    assert sum("% of the choice from half of them" in text for text in said) == {4: 1, 8: 2, 16: 3}[calibrated.batches]
    of = {}
    for batches in (calibrated.batches // 2, calibrated.batches):
        plain, _ = done(workshop, tmp_path, f"trainer.calibration_batches={batches}", *settings)
        assert plain.id != record.id and plain.result.scores_from_cache, "scores are kept by their number of batches"
        assert plain.result.calibrated.batches is None
        of[batches] = selected(plain)
    assert selected(record) == of[calibrated.batches]
    both = sum(len(ids & of[calibrated.batches][key]) for key, ids in of[calibrated.batches // 2].items())
    assert calibrated.overlap == both / sum(map(len, of[calibrated.batches].values()))


def test_another_budget_reads_what_was_scored(workshop, tmp_path):
    given = ["trainer.calibration_batches=8", "trainer.calibration_overlap=1.0"]
    first, _ = done(workshop, tmp_path, *given, "budget.rows=1")
    scores = sorted((tmp_path / "scores").iterdir())
    second, _ = done(workshop, tmp_path, *given, "budget.rows=2")
    assert not first.result.scores_from_cache
    if second.result.calibrated.batches <= first.result.calibrated.batches:
        assert second.result.scores_from_cache and sorted((tmp_path / "scores").iterdir()) == scores


def test_a_choice_of_single_entries_is_kept_and_has_no_early_end(workshop, tmp_path):
    given = ["method=entries", "method.choice=gradient", "method.r=1", "trainer.calibration_batches=4"]
    first, _ = done(workshop, tmp_path, *given)
    second, _ = done(workshop, tmp_path, *given, "trainer.learning_rate=0.01")
    assert not first.result.scores_from_cache and second.result.scores_from_cache
    assert first.result.parameters.adapter == first.result.parameters.budget_achieved > 0
    with pytest.raises(UserError, match="calibration_overlap=0.9: method=entries chooses neither rows nor"):
        done(workshop, tmp_path, *given, "trainer.calibration_overlap=0.9")


def test_the_share_of_two_choices_by_hand():
    ids = torch.tensor
    first = {"a": Chosen(ids([1, 2, 3]), ids([])), "b": Chosen(ids([0]), ids([5, 6]))}
    second = {"a": Chosen(ids([3, 4, 2]), ids([])), "b": Chosen(ids([0]), ids([6, 7]))}
    assert overlap(first, second) == overlap(second, first) == 4 / 6
    assert overlap(first, first) == 1.0
    # With one budget over all layers a layer may be in one choice alone.
    assert overlap(first, {"a": first["a"], "c": first["b"]}) == 3 / 6


def test_where_it_is_off_it_has_no_part_in_an_id(workshop):
    given = workshop.overrides("bert")

    def name(*more):
        return run_spec(compose([*given, *more])).run_id

    assert name("trainer.calibration_overlap=0.9") != name() == name("trainer.calibration_overlap=null")
    assert name("method=lora", "trainer.calibration_overlap=0.9") == name("method=lora")
    with pytest.raises(UserError, match=r"trainer\.calibration_overlap=1\.5: expected a share above 0 and up to 1"):
        compose([*given, "trainer.calibration_overlap=1.5"])
