"""Settings that have other words today: the former ones are read, are the same run, and are shown in today's words."""

import logging

import pytest
from omegaconf import OmegaConf
from tiny import tiny_llama

from rowsft import renamed, report
from rowsft.config.compose import compose
from rowsft.errors import UserError
from rowsft.methods.base import method_of
from rowsft.report.settings import determining
from rowsft.selection.channel import CHANNELS
from rowsft.store import Store
from rowsft.store.identity import old_run_id, run_id
from rowsft.tuner import RowSFTConfig
from rowsft.tuner.attach import score

TASK = ("task=sentiment", "model=minilm")


def plain(*overrides: str) -> dict:
    return OmegaConf.to_container(compose([*overrides, *TASK]))


# Ids by the version whose channels were out, in, half and neuron, and that had the key method.draws.
IDS = [
    ("method.channel=rows", "bf5806c080f8 bf5806c080f8"),
    ("method.channel=columns", "da7a216bba82 da7a216bba82"),
    ("method.channel=both", "6891dfde027b 6891dfde027b"),
    ("method.channel=neurons", "406d01e4b4ec 406d01e4b4ec"),
    ("budget.like={method:row_sft,rows:4,channel:columns}", "a057c077db28 5e6ca04ad3bb"),
    ("method.importance=l1", "9a403ceb7ab9 23b390221338"),
    ("method.importance=zo_taylor", "a574f2e7454c a574f2e7454c"),
    ("method.importance=zo_taylor(draws=256)", "a574f2e7454c a574f2e7454c"),
    ("method.importance=zo_taylor(draws=64)", "e8eeddab04cd e8eeddab04cd"),
    ("method.importance=lowest(zo_taylor(draws=64))", "bbc9b5b82e31 bbc9b5b82e31"),
]


@pytest.mark.parametrize(("setting", "ids"), IDS)
def test_ids_are_those_that_runs_had(setting, ids):
    config = plain("method=row_sft", setting)
    assert f"{run_id(config)} {old_run_id(config)}" == ids


@pytest.mark.parametrize(("former", "today"), renamed.CHANNELS.items())
def test_a_former_channel_is_read_everywhere_with_a_note(former, today, caplog):
    renamed._note.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert RowSFTConfig(rows=2, channel=former).channel == today
        config = compose(["method=row_sft", f"method.channel={former}", *TASK])
        assert method_of(config.method).channel == today
        given, expected = (score(tiny_llama(), "l1", channel=channel) for channel in (former, today))
    assert given.keys() == expected.keys()
    assert [record.getMessage() for record in caplog.records] == [
        f"channel={former} is now called channel={today}; both are read, write the new word"
    ]
    assert run_id(OmegaConf.to_container(config)) == run_id(plain("method=row_sft", f"method.channel={today}"))


def test_every_channel_but_no_other_word_is_renamed():
    assert set(renamed.CHANNELS.values()) == set(CHANNELS)
    assert renamed.channel("diagonal") == "diagonal"


def record(store: Store, config: dict, **words) -> None:
    config = {**config, "method": {**config["method"], **words}, "store": str(store.root), "experiment_name": "x"}
    with store.open(config) as run:
        run.begin().finish("done", primary_metric="accuracy", metrics={"test": {"accuracy": 0.5}})


@pytest.mark.parametrize(
    ("former", "today"),
    [
        ({"channel": "in", "importance": "taylor", "draws": 256}, {"channel": "columns", "importance": "taylor"}),
        (
            {"channel": "out", "importance": "labelwise(zo_taylor, max)", "draws": 64},
            {"channel": "rows", "importance": "labelwise(zo_taylor(draws=64), max)"},
        ),
    ],
)
def test_records_in_former_words_are_found_shown_and_grouped_as_todays(tmp_path, former, today):
    store = Store(tmp_path)
    config = {**plain("method=row_sft"), "revisions": {"model": "a", "data": {}}}
    record(store, config, **former)
    record(store, {**config, "seed": 2}, **today)
    first, second = store.runs("x")
    assert run_id({**config, "method": {**config["method"], **today}}) in {first.id, second.id}
    [section] = report.sections(store.root, "x")
    [row] = section.table.rows
    assert len(row.done) == 2
    for each in (first, second):
        assert today.items() <= each.config["method"].items()
        shown = determining(each)
        assert {key: shown[f"method.{key}"] for key in today} == today
        assert "draws" not in each.config["method"] and "method.draws" not in shown


def test_a_number_of_draws_that_another_metric_never_read_stays():
    config = plain("method=row_sft")
    odd = {**config, "method": {**config["method"], "draws": 64}}
    assert run_id(odd) != run_id(config)


@pytest.mark.parametrize("override", ["method.draws=64", "+method.draws=64"])
def test_the_key_that_is_gone_is_refused_with_what_to_write(override):
    with pytest.raises(UserError, match=r"method\.draws: .*write method\.importance=zo_taylor\(draws=64\) instead"):
        compose(["method=row_sft", override, *TASK])
