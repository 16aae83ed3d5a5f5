"""A sweep's jobs composed by templates: the same configurations as Hydra's own, or none at all."""

import pytest
from omegaconf import OmegaConf

from rowsft.config import compose_many
from rowsft.config.compose import compose
from rowsft.config.compose_many import ManyComposer
from rowsft.config.run_spec import run_spec
from rowsft.errors import UserError


@pytest.fixture(scope="module")
def composer():
    return ManyComposer()


def by_hydra(overrides):
    return OmegaConf.to_container(compose(overrides), resolve=True)


PLAIN = [
    [],
    ["seed=4"],
    ["method=lora", "budget.rows=3", "seed=1"],
    ["method=lora", "budget.rows=3", "seed=2", "trainer.learning_rate=1e-3"],
    # The seed of a method refers to the root's.
    ["method=row_sft", "seed=99"],
    ["method=row_sft", "seed=99", "method.seed=5"],
    ["method.seed=5", "seed=99"],
    # An experiment chooses groups; a group on the command line wins, wherever it stands.
    ["experiment=demo_social_iqa", "seed=3"],
    ["model=minilm", "experiment=demo_social_iqa", "seed=3", "task=sentiment"],
    ["experiment=importance", "debug=tiny", "method.importance='lowest(taylor)'", "seed=2"],
    ["experiment=importance", "method.importance=lowest(taylor)", "budget.rows=4"],
    # Tuned rates: by the method, unless the command gives one.
    ["experiment=quickstart", "method=full"],
    ["experiment=quickstart", "method=full", "trainer.learning_rate=0.5"],
    ["experiment=quickstart", "method=none"],
    ["+tuned.learning_rate.lora=0.5", "method=lora", "seed=1"],
    ["experiment=quickstart_grid", "method=lora", "seed=1"],
    # What is part of the template: additions, deletions, references, lists, mappings.
    ["++trainer.steps=7", "seed=1"],
    ["~trainer.logging_steps", "seed=1"],
    ["trainer.steps=${seed}", "seed=7"],
    ["budget.like={method:lora,r:16}", "seed=2"],
    ["trainer.evaluate=[test]", "seed=2"],
    ["task.limits.train=5", "task=sentiment"],
    ["seed=1", "seed=2"],
    ["store=elsewhere", "experiment_name=20261126", "seed=1"],
    ["model.source='./a folder'", "model.revision=null", "trainer.gradient_checkpointing=true"],
    ["task=text_classification", "task.data.path='~/x.csv'", "task.columns.label=null"],
    ["hydra.launcher.jobs=2", "seed=3"],
    ["method=shira", "seed=8", "budget=like_lora"],
]


@pytest.mark.parametrize("overrides", PLAIN, ids=" ".join)
def test_a_template_filled_is_what_hydra_composes(composer, overrides):
    # The same template serves a second job.
    for job in (overrides, [*overrides, "seed=123456"]):
        assert composer.compose(job) == by_hydra(job)


@pytest.mark.parametrize(
    "overrides",
    [
        # Values that no reader takes, which Hydra's way says; keys whose order counts.
        ["experiment=quickstart", "method=lora", "trainer.learning_rate=null"],
        ["+task.extra=3", "seed=1"],
        ["budget.default.like.r=9", "budget.default={like:{method:lora,r:4}}"],
    ],
    ids=" ".join,
)
def test_what_a_template_cannot_tell_is_left_to_hydra(composer, overrides):
    assert composer.compose(overrides) is None


def test_ordinary_sweeps_need_hydra_once(monkeypatch):
    made = []
    real = compose_many.composed_unresolved
    monkeypatch.setattr(compose_many, "composed_unresolved", lambda rest: made.append(rest) or real(rest))
    composer = ManyComposer()
    for method in ("lora", "row_sft"):
        for rows in (1, 2, 4):
            for seed in range(5):
                job = [
                    f"method={method}",
                    f"budget.rows={rows}",
                    f"seed={seed}",
                    "++trainer.warm_head=1",
                    "trainer.evaluate=[test]",
                ]
                assert composer.compose(job)["budget"]["rows"] == rows
    assert len(made) == 2


def test_what_is_resolved_in_one_job_stays_out_of_the_next(composer):
    first = composer.compose(["method=row_sft", "seed=5"])
    first["method"]["seed"] = "changed"
    assert composer.compose(["method=row_sft", "seed=6"])["method"]["seed"] == 6


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.lr=1"],
        ["method=lorra", "seed=1"],
        ["trainer=3x", "seed=2"],
        ["seed=${nothing}"],
        ["trainer.steps=${oc.env:HOME}"],
        ["seed=???"],
        ["trainer=[", "seed=1"],
        ["experiment_name=null"],
        ["seed.a=1"],
        ["~method"],
        ["task.limits=null"],
    ],
    ids=" ".join,
)
def test_what_only_hydra_can_tell_is_left_to_it(composer, overrides):
    """A wrong override, and one that does more than put in a value: never a configuration of another meaning."""
    made = composer.compose(overrides)
    if made is not None:
        try:
            assert made == by_hydra(overrides)
        except UserError:
            pytest.fail(f"composed what Hydra refuses: {overrides}")


def test_its_configurations_name_the_same_runs(composer):
    for overrides in (["method=lora", "seed=3"], ["experiment=quickstart", "method=full", "budget.rows=2"]):
        assert run_spec(composer.compose(overrides)).run_id == run_spec(compose(overrides)).run_id
