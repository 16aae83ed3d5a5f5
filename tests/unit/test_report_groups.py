"""What is compared with what: tables of planted sweeps, with the right answers written out by hand."""

import shutil

import pytest
from report_factory import config, finish, outcomes, status

from rowsft import report
from rowsft.report import tables
from rowsft.report.markdown import markdown
from rowsft.report.notes import notes
from rowsft.store import Store

# Parameters of one row, or rank, of the planted models.
ROW = 20_000


def plant(store, method, right, seed=1, peak=100, rows=None, **changes):
    """One run: `right` of 100 test examples, at `rows` of budget."""
    if rows is not None:
        changes["budget"] = {"rows": rows}
        changes.setdefault("size", (rows * ROW, rows * ROW))
    changes.setdefault("validation", False)
    changes.setdefault("rate", 1e-3)
    finish(store, outcomes(right), method=method, seed=seed, task="sentiment", peak=peak, **changes)


def table_of(store):
    """{title: (x LoRA of memory, minus LoRA, minus full)} of the only table."""
    (section,) = report.sections(store.root, "demo")
    return section, by_title(section)


def by_title(section):
    return {
        line.title: tuple(
            None if value is None else round(value, 4)
            for value in (
                line.train_peak_to_lora,
                line.minus_lora and line.minus_lora.value,
                line.minus_full and line.minus_full.value,
            )
        )
        for line in section.lines
    }


@pytest.fixture
def budgets(tmp_path):
    """Two budgets and two seeds of LoRA and row-SFT; full fine-tuning has no budget."""
    store = Store(tmp_path)
    for seed in (1, 2):
        for rows, peak, right in ((2, 100, 60), (16, 200, 70)):
            plant(store, "lora", right + seed, seed, peak, rows)
        for rows, peak, right in ((2, 90, 65), (16, 150, 74)):
            plant(store, "row_sft", right + seed, seed, peak, rows)
        plant(store, "full", 80 + seed, seed, 400)
    return store


def test_each_budget_is_held_against_its_own_lora(budgets):
    section, found = table_of(budgets)
    assert found == {
        "row-SFT (rows=2)": (0.9, 0.05, -0.15),
        "row-SFT (rows=16)": (0.75, 0.04, -0.06),
        "LoRA (rows=2)": (1.0, None, -0.2),
        "LoRA (rows=16)": (1.0, None, -0.1),
        # Two LoRAs fit it equally well.
        "full fine-tuning": (None, None, None),
    }
    text = markdown(section)
    assert "| × LoRA of the same rows |" in text and "accuracy minus LoRA of the same rows" in text
    assert "Several LoRA rows fit equally well, so a dash: full fine-tuning." in text


def test_each_budget_is_judged_for_itself(budgets):
    section, _ = table_of(budgets)
    assert status(section, "budget").status == "met"
    plant(budgets, "row_sft", 70, 1, rows=32, size=(32 * ROW, 30 * ROW))
    plant(budgets, "lora", 70, 1, rows=32)
    section, found = table_of(budgets)
    assert found["row-SFT (rows=32)"][:2] == (1.0, 0.0)
    budget = status(section, "budget")
    assert budget.status == "not met" and budget.detail.startswith("rows=32: largest deviation -6.25 %")


def test_a_budget_without_lora_has_a_dash(budgets):
    plant(budgets, "row_sft", 50, 1, rows=4)
    section, found = table_of(budgets)
    assert found["row-SFT (rows=4)"] == (None, None, -0.31), "of the one seed that it shares with full fine-tuning"
    assert "No LoRA with the same settings, so a dash: row-SFT (rows=4)." in markdown(section)


def test_methods_without_a_budget_count_once_a_seed_however_often_they_ran(budgets):
    """Older versions ran them once per budget, under ids of their own."""
    full = [record for record in budgets.runs() if record.config["method"]["name"] == "full"]
    for number, record in enumerate(full):
        again = budgets.root / f"00000000000{number}"
        shutil.copytree(record.folder, again)
        text = (again / "record.json").read_text().replace(record.id, again.name)
        (again / "record.json").write_text(text)
    section, found = table_of(budgets)
    (line,) = [line for line in section.lines if line.method == "full"]
    assert line.seeds == 2 and len(found) == 5 and len(section.table.records) == 12


def test_only_equal_seeds_are_paired(tmp_path):
    store = Store(tmp_path)
    for seed, right in ((1, 60), (2, 70), (3, 80)):
        plant(store, "lora", right, seed)
    for seed, right in ((2, 75), (3, 83), (4, 99)):
        plant(store, "row_sft", right, seed)
    section, found = table_of(store)
    assert found["row-SFT"][1] == 0.04
    assert section.lines[0].minus_lora.seeds == 2


def test_rates_that_all_methods_share_are_compared_rate_by_rate(tmp_path):
    store = Store(tmp_path)
    for rate, peak, lora, rows in ((1e-4, 100, 50, 53), (1e-3, 110, 60, 69)):
        plant(store, "lora", lora, peak=peak, rate=rate)
        plant(store, "row_sft", rows, peak=55, rate=rate)
    _, found = table_of(store)
    assert found == {
        "row-SFT (learning_rate=0.0001)": (0.55, 0.03, None),
        "row-SFT (learning_rate=0.001)": (0.5, 0.09, None),
        "LoRA (learning_rate=0.0001)": (1.0, None, None),
        "LoRA (learning_rate=0.001)": (1.0, None, None),
    }


def test_rates_chosen_on_validation_are_compared_method_by_method_at_each_budget(tmp_path):
    store = Store(tmp_path)
    # (method, rows): {rate: (right on test, accuracy on validation)}; chosen: the best on validation.
    grid = {
        ("lora", 2): {1e-4: (60, 0.5), 1e-3: (64, 0.6)},
        ("lora", 4): {1e-4: (70, 0.7), 1e-3: (79, 0.6)},
        ("row_sft", 2): {1e-4: (61, 0.9), 1e-3: (99, 0.1)},
        ("row_sft", 4): {1e-4: (10, 0.2), 1e-3: (75, 0.8)},
    }
    for (method, rows), rates in grid.items():
        for rate, (right, validation) in rates.items():
            plant(store, method, right, rows=rows, rate=rate, validation=validation)
    section, _ = table_of(store)
    assert {title: found for title, (_, found, _) in by_title(section).items()} == {
        "row-SFT (rows=2, learning_rate=0.0001)": -0.03,
        "row-SFT (rows=4, learning_rate=0.001)": 0.05,
        "LoRA (rows=2, learning_rate=0.001)": None,
        "LoRA (rows=4, learning_rate=0.0001)": None,
    }


def test_steps_and_budgets_swept_together(tmp_path):
    store = Store(tmp_path)
    trainer = config()["trainer"]
    rights = {("lora", 2, 10): 50, ("lora", 2, 20): 60, ("lora", 4, 10): 55, ("lora", 4, 20): 70}
    for (method, rows, steps), right in rights.items():
        plant(store, method, right, rows=rows, trainer={**trainer, "steps": steps, "learning_rate": 1e-3})
        plant(store, "row_sft", right + rows, rows=rows, trainer={**trainer, "steps": steps, "learning_rate": 1e-3})
    for steps, right in ((10, 60), (20, 80)):
        plant(store, "full", right, trainer={**trainer, "steps": steps, "learning_rate": 1e-3})
    section, found = table_of(store)
    assert {title: values[1:] for title, values in found.items()} == {
        "row-SFT (rows=2, steps=10)": (0.02, -0.08),
        "row-SFT (rows=2, steps=20)": (0.02, -0.18),
        "row-SFT (rows=4, steps=10)": (0.04, -0.01),
        "row-SFT (rows=4, steps=20)": (0.04, -0.06),
        "LoRA (rows=2, steps=10)": (None, -0.1),
        "LoRA (rows=2, steps=20)": (None, -0.2),
        "LoRA (rows=4, steps=10)": (None, -0.05),
        "LoRA (rows=4, steps=20)": (None, -0.1),
        "full fine-tuning (steps=10)": (None, None),
        "full fine-tuning (steps=20)": (None, None),
    }
    assert status(section, "optimizer").status == "met"


def test_tasks_are_tables_of_their_own(tmp_path):
    store = Store(tmp_path)
    for task, lora, rows in (("sentiment", 60, 66), ("reviews", 70, 71)):
        for method, right in (("lora", lora), ("row_sft", rows)):
            finish(store, outcomes(right), method=method, task=task, validation=False)
    first, second = report.sections(tmp_path, "demo")
    assert (first.table.task, by_title(first)["row-SFT"][1]) == ("reviews", 0.01)
    assert (second.table.task, by_title(second)["row-SFT"][1]) == ("sentiment", 0.06)


def base(source, fingerprint=None):
    """A model group and its revision, as `model=llama3_8b model.source=...` records them."""
    model = {"name": "llama3_8b", "source": source, "dtype": "float32", "target_modules": ["query"]}
    return {"model": model, "revisions": {"model": fingerprint or source, "data": {}}}


def test_two_bases_are_two_tables_and_a_folder_is_called_by_its_name(tmp_path):
    store = Store(tmp_path)
    hub = base("meta-llama/Meta-Llama-3-8B")
    folder = base("./models/tiny", "a" * 64)
    same = base("/elsewhere/models/tiny", "a" * 64)
    for method, right in (("lora", 80), ("row_sft", 83)):
        plant(store, method, right, **hub)
    plant(store, "lora", 50, **folder)
    plant(store, "row_sft", 51, **same)
    sections = report.sections(tmp_path, "demo")
    assert {part.table.model: by_title(part)["row-SFT"][1] for part in sections} == {"llama3_8b": 0.03, "tiny": 0.01}
    assert all(status(part, "base_weights").status == "met" for part in sections)
    assert tables.heading(sections[1].table) == "sentiment · tiny · demo"


def test_folders_of_one_name_and_contents_that_changed_are_told_apart(tmp_path):
    store = Store(tmp_path)
    for source, fingerprint in (("./a/tiny", "a" * 64), ("./b/tiny", "b" * 64), ("./b/tiny", "c" * 64)):
        plant(store, "lora", 50, **base(source, fingerprint))
    models = [part.table.model for part in report.sections(tmp_path, "demo")]
    assert models == ["a/tiny", "tiny @ bbbbbbbb", "tiny @ cccccccc"]


def test_random_weights_are_no_base_to_compare_with_the_checkpoint_that_gives_their_shape(tmp_path):
    store = Store(tmp_path)
    pretrained, random = base("./models/tiny", "a" * 64), base("./models/tiny", "a" * 64)
    random["model"] = {**random["model"], "pretrained": False}
    plant(store, "full", 80, **pretrained)
    plant(store, "full", 50, **random)
    models = [part.table.model for part in report.sections(tmp_path, "demo")]
    assert models == ["tiny", "tiny (random weights)"]


def test_another_hub_id_is_not_called_by_the_name_of_the_model_that_it_replaced(tmp_path):
    store = Store(tmp_path)
    plant(store, "lora", 50, **base("someone/other-8B"))
    plant(store, "lora", 50, **base("meta-llama/Meta-Llama-3-8B"))
    assert [part.table.model for part in report.sections(tmp_path, "demo")] == ["llama3_8b", "someone/other-8B"]


def test_data_files_are_told_apart_by_their_contents(tmp_path):
    store = Store(tmp_path)

    def data(path, sha):
        task = {"name": "text_classification", "data": {"train": path}}
        return {"task": task, "revisions": {"model": "package:minilm", "data": {"data.train": sha}}}

    for method, where in (("lora", data("a/x.csv", "1" * 64)), ("row_sft", data("b/x.csv", "1" * 64))):
        finish(store, outcomes(60), method=method, validation=False, **where)
    finish(store, outcomes(90), method="row_sft", validation=False, **data("c/y.csv", "2" * 64))
    sections = report.sections(tmp_path, "demo")
    assert [part.table.task for part in sections] == ["text_classification (x.csv)", "text_classification (y.csv)"]
    assert [len(part.lines) for part in sections] == [2, 1]


def test_files_of_a_task_of_ones_own_are_called_by_their_names_and_an_absent_one_too(tmp_path):
    store = Store(tmp_path)
    for path, contents in (("a/x.csv", {"path": "a" * 64}), ("y.csv", {"path": "b" * 64}), ("gone.csv", {})):
        task = {"name": "mine", "path": path, "primary_metric": "accuracy"}
        revisions = {"model": "package:minilm", "data": contents}
        finish(store, outcomes(60), method="lora", validation=False, task=task, revisions=revisions)
    named = {part.table.task for part in report.sections(tmp_path, "demo")}
    assert named == {"mine (x.csv)", "mine (y.csv)", "mine (gone.csv)"}


def test_a_shared_rate_makes_no_budget_the_reference_of_a_method_without_one(tmp_path):
    store = Store(tmp_path)
    plant(store, "lora", 60, rows=2, rate=1e-4)
    plant(store, "lora", 80, rows=8, rate=1e-3)
    plant(store, "full", 90, rate=1e-4)
    section, rows = table_of(store)
    assert rows["full fine-tuning"] == (None, None, None)
    assert rows["LoRA (rows=8, learning_rate=0.001)"] == (1.0, None, -0.1)
    assert any(note.startswith("Several LoRA rows fit equally well") for note in notes(section))


def test_two_primary_metrics_are_two_tables(tmp_path):
    store = Store(tmp_path)
    for name, values in (("accuracy", (0.9, 0.8)), ("f1", (0.3, 0.5))):
        task = {"name": "text_classification", "primary_metric": name, "data": {"train": "x.csv"}}
        for method, value in zip(("lora", "row_sft"), values, strict=True):
            finish(store, outcomes(60), method=method, task=task, metric=(name, value))
    sections = report.sections(tmp_path, "demo")
    assert [(part.table.task, part.table.metric, [line.value for line in part.lines]) for part in sections] == [
        ("text_classification (x.csv; accuracy)", "accuracy", [0.8, 0.9]),
        ("text_classification (x.csv; f1)", "f1", [0.5, 0.3]),
    ]


def test_names_of_rows_have_values_as_they_are_typed_and_in_full(tmp_path):
    store = Store(tmp_path)
    for budget in (
        {"rows": 4, "ratio": None},
        {"rows": None, "ratio": 0.12345678},
        {"rows": None, "ratio": 0.12345679},
    ):
        finish(store, outcomes(60), method="row_sft", task="sentiment", budget=budget)
        finish(store, outcomes(60), method="lora", task="sentiment", budget=budget)
    (section,) = report.sections(tmp_path, "demo")
    assert [line.title for line in section.lines if line.method == "lora"] == [
        "LoRA (ratio=0.12345678, rows=null)",
        "LoRA (ratio=0.12345679, rows=null)",
        "LoRA (ratio=null, rows=4)",
    ]
    assert sorted(len(rows) for rows in section.table.sweep.groups.values()) == [2, 2, 2]


def own(name, **size):
    return {"_target_": f"baselines.{name}.Method", "name": name, "dropout": 0, **size}


def test_a_methods_own_sizes_are_compared_at_equal_numbers_of_parameters(tmp_path):
    store = Store(tmp_path)
    for r, right in ((4, 60), (16, 70)):
        plant(store, own("lora", r=r), right, peak=100 * r, size=(r * ROW, r * ROW))
    for rows, right in ((8, 63), (32, 75), (64, 80)):
        plant(store, own("row_sft", rows=rows), right, peak=100 * rows, size=(rows * ROW // 2, rows * ROW // 2))
    section, found = table_of(store)
    assert found == {
        "row-SFT (rows=8)": (2.0, 0.03, None),
        "row-SFT (rows=32)": (2.0, 0.05, None),
        "row-SFT (rows=64)": (None, None, None),
        "LoRA (r=4)": (1.0, None, None),
        "LoRA (r=16)": (1.0, None, None),
    }
    assert status(section, "budget").status == "met"


def test_of_several_loras_the_one_with_most_in_common_is_meant_and_none_where_they_tie(tmp_path):
    store = Store(tmp_path)
    for dropout, right in ((0, 60), (0.1, 70)):
        plant(store, own("lora") | {"dropout": dropout}, right)
    plant(store, own("row_sft") | {"dropout": 0.1}, 72)
    plant(store, own("dora") | {"dropout": 0.5}, 90)
    section, found = table_of(store)
    assert found["row-SFT"][1] == 0.02 and found["DoRA"][1] is None
    assert "Several LoRA rows fit equally well, so a dash: DoRA." in markdown(section)


def test_target_modules_swept_for_all_methods_are_compared_at_each_value(tmp_path):
    store = Store(tmp_path)
    for modules, lora, rows in ((["query"], 60, 61), (["query", "value"], 70, 75)):
        model = {**config()["model"], "target_modules": modules}
        plant(store, "lora", lora, model=model)
        plant(store, "row_sft", rows, model=model)
    section, found = table_of(store)
    assert [round(line.minus_lora.value, 4) for line in section.lines if line.method == "row_sft"] == [0.05, 0.01]
    assert status(section, "target_modules").status == "met"


def test_a_condition_that_each_method_has_its_own_value_of_breaks_the_contract(tmp_path):
    store = Store(tmp_path)
    trainer = {**config()["trainer"], "learning_rate": 1e-3}
    plant(store, "lora", 60, trainer=trainer)
    plant(store, "row_sft", 90, trainer={**trainer, "batch_size": 64})
    section, found = table_of(store)
    assert found["row-SFT"] == (None, None, None)
    assert status(section, "data_order").status == "not met"


def test_a_setting_that_a_method_does_not_have_is_no_difference(tmp_path):
    """Full fine-tuning has no budget, LoRA reads no calibration batches: neither was swept."""
    store = Store(tmp_path)
    trainer = config()["trainer"] | {"learning_rate": 1e-3, "calibration_batches": 10}
    row_sft = own("row_sft") | {"_target_": "rowsft.methods.row_sft.RowSFT", "importance": "taylor", "draws": 256}
    plant(store, row_sft, 60, trainer=trainer, rows=2)
    plant(store, own("lora") | {"_target_": "baselines.lora.Lora"}, 60, trainer=trainer, rows=2)
    plant(store, own("full") | {"_target_": "baselines.full.Full"}, 60, trainer=trainer)
    section, found = table_of(store)
    assert [line.differs_in for line in section.lines] == ["", "", ""]
    assert found == {"row-SFT": (1.0, 0.0, 0.0), "LoRA": (1.0, None, 0.0), "full fine-tuning": (1.0, 0.0, None)}
    assert "of the same" not in markdown(section)


def test_settings_that_only_some_metrics_have_are_not_in_their_names(tmp_path):
    store = Store(tmp_path)
    trainer = config()["trainer"] | {"learning_rate": 1e-3, "calibration_batches": 10}
    for importance in ("l2", "zo_taylor"):
        method = {
            "_target_": "rowsft.methods.row_sft.RowSFT",
            "name": "row_sft",
            "importance": importance,
            "draws": 256,
        }
        plant(store, method, 60, trainer=trainer, rows=2)
    section, found = table_of(store)
    assert list(found) == ["row-SFT (importance=l2)", "row-SFT (importance=zo_taylor)"]
