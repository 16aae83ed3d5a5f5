"""What methods say of themselves: kept in records, and shown by the report without a list of methods."""

from types import SimpleNamespace

import pytest
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from report_factory import config, outcomes
from tiny import tiny_llama

from rowsft import report
from rowsft.baselines.full import Full
from rowsft.baselines.lora import Lora
from rowsft.errors import UserError
from rowsft.method_info import _EARLIER, LAST, MethodInfo, from_record, info_of, to_record
from rowsft.methods.base import CalibratedMethod, calibrating, method_class, method_names, selected, selection_bounds
from rowsft.methods.peft_method import PeftMethod
from rowsft.output import escape
from rowsft.plan.comparison import variants
from rowsft.report.curves import chart
from rowsft.report.markdown import markdown
from rowsft.report.style import looks
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets
from rowsft.store import Store

MINE = MethodInfo("mine", "Mine & yours", order=35, colour="#123456", marker="*", budgeted=False)


def plant(root, method, right, info=None, rows=4):
    """A finished run of `method`, `right` of 100 test examples, whose record keeps `info`."""
    group = {"_target_": f"own.{method}", "name": method}
    with Store(root).open(config(method=group, task="sentiment", rate=1e-3, budget={"rows": rows})) as run:
        attempt = run.begin(**({"method_info": to_record(info)} if info else {}))
        attempt.update(
            primary_metric="accuracy",
            metrics={"test": {"accuracy": right / 100}},
            memory={"kind": "cpu_profiler", "train": {"peak_allocated_bytes": right * 2**20}},
            parameters={"budget_asked": 100, "budget_achieved": 100},
        )
        attempt.write_curve([{"step": step, "loss": 1 / step} for step in (1, 2, 3)])
        attempt.write_predictions(outcomes(right))
        attempt.finish("done")


def test_old_records_of_the_shipped_methods_are_shown_as_new_ones():
    shown = ("name", "title", "order", "colour", "marker", "budgeted", "trains")
    for name in _EARLIER:
        now, before = info_of(method_class(name)()), from_record(name, None)
        assert {key: getattr(now, key) for key in shown} == {key: getattr(before, key) for key in shown}
        assert set(now.sizes) <= set(before.sizes) or not now.budgeted
    for name in method_names():
        now = info_of(method_class(name)())
        assert from_record(name, to_record(now)) == now


def test_no_two_methods_look_alike():
    infos = [method_class(name).info for name in method_names()]
    drawn = [(info.colour, info.marker) for info in infos]
    assert len(set(drawn)) == len({info.order for info in infos}) == len(infos)


def test_prefixes_of_adapters_are_those_of_peft():
    prefixes = {name: method_class(name).info.adapter_prefix for name in method_names()}
    plain = {name for name in prefixes if not issubclass(method_class(name), PeftMethod)}
    assert {name for name, prefix in prefixes.items() if prefix is None} == plain >= {"none", "head", "full"}
    model, budget = tiny_llama(), Budget(like={"method": "lora", "r": 2})
    # On a base in 4 bits alone.
    assert prefixes.pop("loftq") == prefixes["lora"]
    for name, prefix in prefixes.items():
        if prefix is not None:
            method = method_class(name)(**({"importance": "l2"} if name == "row_sft" else {}))
            resolved = selected(method, model, method.solve(budget, model, Targets()))
            config = method.peft_config(model, resolved)
            assert PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type] == prefix


def test_a_method_under_another_name_is_shown_by_that_name():
    assert info_of(Lora(name="high")) == MethodInfo("high", "high", marker="s", sizes=("r",), adapter_prefix="lora_")
    assert info_of(Full(name="all")).budgeted is False
    assert info_of(SimpleNamespace(name="bare", trains=False)) == MethodInfo("bare", "bare", trains=False)


@pytest.mark.parametrize("look", [{"colour": "red"}, {"colour": "#12"}, {"marker": ""}, {"marker": "os"}])
def test_a_look_that_no_picture_can_show_is_refused(look):
    with pytest.raises(UserError, match="of method mine: must be"):
        MethodInfo("mine", "Mine", **look)
    assert from_record("mine", {**to_record(MINE), **look}).title == "mine"


def test_methods_without_a_colour_are_told_apart():
    drawn = looks({name: MethodInfo(name, name) for name in "abc"} | {"mine": MINE})
    assert drawn.pop("mine") == ("#123456", "*")
    assert len(set(drawn.values())) == 3 and drawn == looks({name: MethodInfo(name, name) for name in "cba"})


def test_only_methods_that_choose_are_asked_for_a_choice():
    calibrated = {name for name in method_names() if isinstance(method_class(name)(), CalibratedMethod)}
    assert calibrated == {"row_sft", "entries"}
    row_sft, lora = method_class("row_sft"), Lora(r=2)
    assert calibrating(row_sft(importance="taylor")) and not calibrating(row_sft(importance="l2"))
    resolved = lora.solve(Budget(), tiny_llama(), Targets())
    assert calibrating(lora) is None and selected(lora, tiny_llama(), resolved) is resolved
    assert selection_bounds(lora, tiny_llama(), resolved) == {"": resolved}


def test_the_plan_compares_the_variants_that_methods_name():
    assert variants() == {
        "row-SFT, rows": ["method=row_sft"],
        "row-SFT, columns": ["method=row_sft", "method.channel=columns"],
        "LoRA": ["method=lora"],
        "DoRA": ["method=dora"],
        "full fine-tuning": ["method=full"],
    }


def test_a_method_of_ones_own_is_shown_as_it_says_and_one_that_says_nothing_by_its_name(tmp_path):
    for method, right, info in (("lora", 60, None), ("dora", 61, None), ("other", 62, None), ("mine", 63, MINE)):
        plant(tmp_path / "runs", method, right, info)
    files = report.build(tmp_path / "runs", "demo", tmp_path / "out")
    (section,) = files.sections
    assert [line.title for line in section.lines] == ["LoRA", "Mine & yours", "DoRA", "other"]
    assert section.table.infos["other"].order == LAST
    assert f"| {escape.markdown(MINE.title)} |" in markdown(section)
    assert "Mine &amp; yours" in files.page.read_text()
    assert b"#123456" in (chart(section) or b"")
    assert files.picture is not None


def test_a_later_attempt_that_died_before_it_began_takes_no_title_away(tmp_path):
    plant(tmp_path, "mine", 60, MINE)
    (record,) = Store(tmp_path).runs()
    Store(tmp_path).record_death(record.config, pid=2**22, message="killed")
    (section,) = report.sections(tmp_path, "demo")
    assert [line.title for line in section.lines] == ["Mine & yours"]


def test_a_method_without_a_budget_is_one_row_whatever_the_budgets(tmp_path):
    for rows in (4, 8):
        plant(tmp_path, "mine", 60, MINE, rows=rows)
        plant(tmp_path, "other", 60 + rows, rows=rows)
    (section,) = report.sections(tmp_path, "demo")
    assert [line.title for line in section.lines] == ["Mine & yours", "other (rows=4)", "other (rows=8)"]
