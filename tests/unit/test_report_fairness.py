"""The contract of a fair comparison: computed from records, broken where records say so."""

import pytest
from report_factory import COSTS, ENVIRONMENT, config, finish, regression, status

from rowsft import report
from rowsft.store import Store


def build_two(tmp_path, second):
    """LoRA as usual and row-SFT with changes: `second` are arguments of the factory."""
    store = Store(tmp_path)
    finish(store, regression("lora", 1))
    rows = second.pop("predictions", regression("row_sft", 1))
    finish(store, rows, **{"method": "row_sft"} | second)
    return report.sections(tmp_path, "demo")[0]


def changed(group, **values):
    return {group: {**config(method="row_sft")[group], **values}}


@pytest.mark.parametrize(
    "key, changes",
    [
        ("base_weights", {"facts": {"sha256": "another file under the same name"}}),
        ("base_weights", changed("model", dtype="bfloat16")),
        ("data_order", changed("trainer", batch_size=8)),
        ("data_order", {"seed": 2}),
        ("target_modules", changed("model", target_modules=["query"])),
        ("dropout", changed("method", dropout=0.1)),
        ("optimizer", changed("trainer", scheduler="cosine")),
        ("label_masking", changed("task", max_length=64)),
        ("evaluation", {"predictions": regression("row_sft", 1, n=150)}),
    ],
)
def test_a_breach_of_the_contract_is_seen(tmp_path, key, changes):
    assert status(build_two(tmp_path, dict(changes)), key).status == "not met"


@pytest.mark.parametrize(("examples", "judged"), [(200, "met"), (150, "not met")])
def test_the_model_without_training_is_scored_on_the_same_examples(tmp_path, examples, judged):
    store = Store(tmp_path)
    finish(store, regression("lora", 1))
    finish(store, regression("none", 1, n=examples, noise=1.0), method="none")
    (section,) = report.sections(tmp_path, "demo")
    assert status(section, "evaluation").status == judged


def test_budget_and_machine_breaches_are_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(COSTS, "row_sft", (230_000, 402.5, 290.1, 0.61))
    monkeypatch.setitem(ENVIRONMENT, "git_dirty", True)
    section = build_two(tmp_path, {})
    assert status(section, "budget").status == "not met" and "+3.99 %" in status(section, "budget").detail
    assert status(section, "machine").status == "not met"


def test_jobs_side_by_side_and_an_unknown_commit_are_seen(tmp_path, monkeypatch):
    assert status(build_two(tmp_path / "alone", {}), "machine").status == "met"
    crowded = status(build_two(tmp_path / "crowded", {"concurrent_jobs": 2}), "machine")
    assert crowded.status == "not met" and "2 jobs" in crowded.detail
    monkeypatch.setitem(ENVIRONMENT, "git_commit", None)
    assert status(build_two(tmp_path / "no_checkout", {}), "machine").status == "not recorded"


def test_an_experiment_may_state_what_records_cannot_tell_but_not_overrule_them(tmp_path):
    stated = {"adapter_dtype": "float32 throughout", "seeds": "one is enough"}
    store = Store(tmp_path)
    finish(store, regression("lora", 1), fairness=stated)
    section = report.sections(tmp_path, "demo")[0]
    assert status(section, "adapter_dtype").status == "stated"
    assert "float32 throughout" in status(section, "adapter_dtype").detail
    assert status(section, "seeds").status == "not met"


def grid(store, method, rates, validation, experiment="demo_grid"):
    """A tuning grid as its own experiment: the validation split alone."""
    for rate, value in zip(rates, validation, strict=True):
        trainer = {**config()["trainer"], "learning_rate": rate, "evaluate": ["validation"]}
        finish(store, regression(method, 1), method=method, experiment=experiment, trainer=trainer, validation=value)


def test_a_grid_in_the_store_meets_the_contract_when_its_best_rate_was_used(tmp_path):
    store = Store(tmp_path)
    for method in ("row_sft", "lora"):
        finish(store, regression(method, 1), method=method, rate=3e-4, validation=0.9)
        grid(store, method, [1e-4, 1e-3], [0.5, 0.6])
    assert status(report.sections(tmp_path, "demo")[0], "learning_rate").status == "met"
    table = report.sections(tmp_path, "demo_grid")[0]
    assert [(rate.method, rate.learning_rate, rate.chosen) for rate in table.rates] == [
        ("row_sft", 1e-4, False),
        ("row_sft", 1e-3, True),
        ("lora", 1e-4, False),
        ("lora", 1e-3, True),
    ]
    assert [line.learning_rate for line in table.lines] == [1e-3, 1e-3], "one row a method, the best on validation"
    grid(store, "lora", [3e-3], [0.95])
    assert status(report.sections(tmp_path, "demo")[0], "learning_rate").status == "not met"
    grid(store, "row_sft", [3e-3], [0.1])
    found = status(report.sections(tmp_path, "demo")[0], "learning_rate")
    assert found.status == "not met" and found.detail == "not the best rate on validation: LoRA"


@pytest.mark.parametrize(
    ("recorded", "judged", "says"),
    [
        ({"optimizer": "AdamW"}, "met", "AdamW throughout"),
        ({"optimizer": "AdamW8bit"}, "not met", "row-SFT: AdamW8bit; LoRA: AdamW"),
        (
            {"optimizer": "AdamW", "groups": [{"name": "A", "rate_factor": 1}, {"name": "B", "rate_factor": 16}]},
            "met",
            "AdamW throughout; part of the method: row-SFT steps B at 16 times the rate",
        ),
        (
            {"optimizer": "Own", "groups": [{"name": "all", "rate_factor": 1.0}], "between_steps": "cuts ranks"},
            "not met",
            "row-SFT: Own; LoRA: AdamW; part of the method: row-SFT (cuts ranks)",
        ),
    ],
)
def test_what_a_methods_steps_have_of_their_own_is_said(tmp_path, recorded, judged, says):
    """LoRA's run is from before there was such a record: AdamW it was."""
    found = status(build_two(tmp_path, {"optimization": recorded}), "optimizer")
    assert (found.status, found.detail) == (judged, says)
