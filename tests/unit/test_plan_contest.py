"""The search for what a card holds, against trying every count; and what a comparison refuses."""

import math
from argparse import Namespace

import pytest

from rowsft.cli.plan_modes import print_plan
from rowsft.config.compose import compose
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.plan import plan
from rowsft.plan.comparison import largest
from rowsft.plan.description import of_comparison, of_sweep
from rowsft.plan.fit import Card
from rowsft.plan.picture import bars
from rowsft.plan.sweep import sweep

SMALL = ["model=minilm", "task=sentiment", "trainer.batch_size=2", "task.max_length=8", "budget.rows=4"]


@pytest.mark.parametrize(
    "cost",
    [
        lambda count: 100 + 7 * count,
        lambda count: max(500 + 3 * count, 20 * count),
        lambda count: 40 + count * count // 50,
        lambda count: 512 * (1 + count // 9),
        lambda count: 300,
    ],
)
@pytest.mark.parametrize("capacity", [99, 107, 511, 1000, 1777, 10**6])
def test_the_largest_count_is_that_of_trying_all(cost, capacity):
    calls = []

    def counted(count):
        calls.append(count)
        return cost(count)

    fitting = [count for count in range(1, 201) if cost(count) <= capacity]
    expected = fitting[-1] if fitting else None
    assert largest(counted, capacity, most=200) == expected
    assert len(calls) == len(set(calls)) <= 24


def test_long_texts_are_found_to_within_half_a_percent():
    found = largest(lambda tokens: 10**6 + 777 * tokens, 10**8, most=2**20, least=8)
    exact = (10**8 - 10**6) // 777
    assert exact * 0.995 <= found <= exact


def test_a_sweep_plans_every_value():
    plans = sweep([*SMALL[:-1], "method=lora"], "budget.rows=2,8")
    small, large = plans.values()
    assert list(plans) == ["budget.rows=2", "budget.rows=8"]
    assert large.trainable.total() - large.head_parameters > 3 * (small.trainable.total() - small.head_parameters)
    assert large.peak_bytes > small.peak_bytes
    assert bars(of_sweep(plans)).startswith(b"\x89PNG")
    with pytest.raises(UserError, match="expected a key with values"):
        sweep(SMALL, "budget.rows")


def test_what_a_card_holds_of_a_small_model(monkeypatch):
    from rowsft.plan import comparison

    monkeypatch.setattr(comparison, "MOST_EXAMPLES", 4)
    monkeypatch.setattr(comparison, "MOST_TOKENS", 16)
    card = Card("small", 1250 * 2**20)
    entry = comparison.entry_of("LoRA", [*SMALL, "method=lora"], card)
    [table] = of_comparison([entry], card).tables
    assert [len(row) for row in table.rows] == [len(table.header)]
    config = compose([*SMALL, "method=lora"])

    def needs(**changes):
        return plan(config, trainer_settings(config), changes, training_only=True).demand

    assert needs(batch_size=entry.largest_batch).fits(card)
    assert entry.largest_batch == 4 or not needs(batch_size=entry.largest_batch + 1).fits(card)


def test_a_swept_list_is_one_value():
    plans = sweep([*SMALL, "method=lora"], "model.target_modules=[query,key],[value]")
    assert list(plans) == ["model.target_modules=[query,key]", "model.target_modules=[value]"]


@pytest.mark.parametrize("setting", ["budget.rows", "budget.rows=", "=1,2", "budget.rows=1,[2"])
def test_a_sweep_without_key_or_values_is_refused(setting):
    with pytest.raises(UserError, match="expected a key with values"):
        sweep(SMALL, setting)


def asked(**changes):
    settings = {"overrides": [*SMALL, "method=lora"], "json": False, "card": None, "compare": False, "sweep": None}
    return Namespace(**{**settings, "out": None, "length": None, "answer": None, **changes})


@pytest.mark.parametrize("card", [0.0, -3.0, math.nan, math.inf])
def test_a_card_of_no_size_is_refused(card):
    with pytest.raises(UserError, match=r"--card .*: expected the card's memory in GB"):
        print_plan(asked(card=card))


@pytest.mark.parametrize("others", [{}, {"sweep": "budget.rows=2", "json": True}])
def test_a_folder_that_would_stay_empty_is_refused(tmp_path, others):
    with pytest.raises(UserError, match=r"--out .*: a page is drawn of --compare or --sweep, without --json"):
        print_plan(asked(out=tmp_path, **others))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file: cannot be written"):
        print_plan(asked(out=tmp_path / "file", sweep="budget.rows=2"))
