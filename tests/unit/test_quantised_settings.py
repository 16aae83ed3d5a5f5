"""What `model.quantize` is to settings, ids, tables and exports; no library that quantises is needed."""

import copy
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from report_factory import config, finish, outcomes

from rowsft import report
from rowsft.config.compose import compose
from rowsft.config.settings import QUANTIZE
from rowsft.errors import UserError
from rowsft.export.merged import check_into
from rowsft.export.source import Source
from rowsft.layers.packing import LIBRARIES
from rowsft.models.quantising import check_quantize, layers_to_pack
from rowsft.store import Store, run_id
from rowsft.tasks.heads import CAUSAL_LM


def composed(*overrides):
    return OmegaConf.to_container(compose(["model=smollm2_135m", "task=social_iqa", "method=row_sft", *overrides]))


def test_the_kinds_are_known_alike():
    assert set(QUANTIZE) == set(LIBRARIES)


def test_a_wrong_kind_is_one_line():
    with pytest.raises(UserError, match="model.quantize=4bit: expected nf4, nf4_double, int8, or null for none"):
        composed("model.quantize=4bit")


def test_ids_of_plain_bases_are_what_they_were():
    now = composed()
    before = copy.deepcopy(now)
    del before["model"]["quantize"], before["method"]["quantised_start"]
    assert run_id(now) == run_id(before)
    assert run_id(composed("method.quantised_start=zero")) == run_id(before)


def test_a_quantised_base_is_another_run_and_so_is_another_start():
    runs = {run_id(composed(f"model.quantize={kind}")) for kind in (*QUANTIZE, "null")}
    runs.add(run_id(composed("model.quantize=nf4", "method.quantised_start=zero")))
    assert len(runs) == 5


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setattr("rowsft.models.quantising.find_spec", lambda name: None)
    assert check_quantize({"quantize": None}) is None
    with pytest.raises(UserError, match="model.quantize=int8 needs torchao, which is not installed; pip install"):
        check_quantize({"quantize": "int8"})


def test_which_layers_are_packed():
    from tiny import tiny_bert, tiny_gpt2, tiny_llama

    assert layers_to_pack(tiny_gpt2(), []) == []
    assert not any("classifier" in name or "pooler" in name for name in layers_to_pack(tiny_bert(), []))
    assert len(layers_to_pack(tiny_bert(), ["intermediate.dense"])) == 10
    assert len(layers_to_pack(tiny_llama(), ["score"])) == 14
    assert "lm_head" not in layers_to_pack(tiny_llama(), [])


def test_runs_on_a_packed_base_have_a_table_of_their_own(tmp_path):
    store = Store(tmp_path)
    for kind in (None, "nf4", "int8"):
        model = {**config(task="sentiment")["model"], **({"quantize": kind} if kind else {})}
        for method in ("lora", "row_sft"):
            finish(store, outcomes(60), method=method, task="sentiment", model=model)
    titles = [section.table.model for section in report.sections(store.root, "demo")]
    assert len(titles) == 3
    assert sum("(nf4)" in title for title in titles) == sum("(int8)" in title for title in titles) == 1


def source(kind):
    return Source("run 3f2a", Path(), {}, {"source": "x", "quantize": kind}, CAUSAL_LM, None)


@pytest.mark.parametrize(
    ("kind", "into", "words"),
    [
        (None, "quantised", "--merge-into quantised: the base of run 3f2a was not quantised"),
        ("nf4", None, "run 3f2a was trained on a base in nf4; say what to merge into"),
    ],
)
def test_merging_names_its_base_where_there_is_a_choice(kind, into, words):
    with pytest.raises(UserError, match=words):
        check_into(source(kind), into)


def test_merging_that_is_clear_passes():
    check_into(source(None), None)
    check_into(source("nf4"), "original")
