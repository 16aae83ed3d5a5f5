"""Columns of lm-evaluation-harness in reports: which evaluations count and compare, intervals, differences."""

import csv
import math

import numpy as np
import pytest
from harness_factory import evaluate
from report_factory import finish

import rowsft
from rowsft import report
from rowsft.report.compare import compare
from rowsft.report.harness_samples import scored_samples
from rowsft.report.notes import notes
from rowsft.report.tables import blocks
from rowsft.store import Store

TITLE = "Tasks of lm-evaluation-harness (lm-eval)"


def hits(share: float, seed: int, n: int = 120) -> list[int]:
    return [int(hit) for hit in np.random.default_rng(seed).random(n) < share]


def predictions(right: list[int]) -> list[dict]:
    return [{"id": str(i), "split": "test", "prediction": hit, "label": 1} for i, hit in enumerate(right)]


def run(store: Store, method: str, right: list[int], seed: int = 1, **options) -> str:
    return finish(store, predictions(right), method=method, seed=seed, task="sentiment", **options)


def only_section(store: Store):
    (section,) = report.sections(store, "demo")
    return section


def sheets(section) -> dict[str, list[list[str]]]:
    return {sheet.title: sheet.rows for sheet in blocks(section)}


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_a_task_has_the_numbers_that_a_primary_metric_of_the_same_answers_has(tmp_path, seeds):
    """Intervals and paired differences come from the same code on the same examples."""
    store = Store(tmp_path)
    for place, method in enumerate(("row_sft", "lora", "full")):
        for seed in seeds:
            right = hits(0.6 + 0.1 * place, 10 * seed + place)
            evaluate(store, run(store, method, right, seed), "boolq", right)
    section = only_section(store)
    (column,) = section.harness
    assert (column.title, column.key, column.higher_is_better) == ("boolq acc", "lm_eval.boolq.acc", True)
    for line, cell in zip(section.lines, column.cells, strict=True):
        assert line.harness == {"lm_eval.boolq.acc": cell}
        assert cell.estimate == line.estimate and cell.examples == 120
        assert (cell.minus_lora, cell.minus_full) == (line.minus_lora, line.minus_full)
    assert section.lines[0].harness["lm_eval.boolq.acc"].minus_lora.low is not None
    assert not any("lm-eval" in note or "Evaluat" in note for note in notes(section))


def test_every_form_of_the_report_shows_them_and_a_dash_where_a_run_has_none(tmp_path):
    store = Store(tmp_path / "runs")
    right = {method: hits(share, 5) for method, share in {"row_sft": 0.8, "lora": 0.7, "dora": 0.6}.items()}
    ids = {method: run(store, method, own) for method, own in right.items()}
    for method in ("row_sft", "lora"):
        evaluate(store, ids[method], "boolq", right[method])
        evaluate(store, ids[method], "gsm8k", right[method], "exact_match,strict-match", shots=5, limit=120)
    files = report.build(store.root, "demo", tmp_path / "out")
    (section,) = files.sections
    main, differences = (rows for title, rows in sheets(section).items() if title.startswith(TITLE))
    assert main[2] == ["DoRA", "–", "–"] and main[0][1].startswith(f"{np.mean(right['row_sft']):.4f} [0.")
    assert differences[2][1:] == differences[1][1:] == ["–", "–"] and differences[0][1].startswith("+0.")
    titles = ["boolq acc", "gsm8k exact_match,strict-match, 5-shot, limit 120"]
    for text in (files.page.read_text(), files.markdown.read_text().replace("\\", "")):
        assert all(title in text for title in titles) and TITLE in text
    for width in (200, 80):
        text = report.text(files.sections, width)
        assert f"{np.mean(right['lora']):.4f}" in text.partition(TITLE)[2] and all(title in text for title in titles)
        assert max(map(len, text.splitlines())) <= width
    with files.table.open(newline="") as stream:
        first, _, last = csv.DictReader(stream)
    assert float(first["lm_eval.boolq.acc"]) == np.mean(right["row_sft"])
    assert float(first["lm_eval.boolq.acc.minus_lora"]) == pytest.approx(
        np.mean(right["row_sft"]) - np.mean(right["lora"])
    )
    assert last["lm_eval.boolq.acc"] == ""
    frame = rowsft.load_runs(store.root).set_index("config.method.name")
    scores = frame["lm_eval.boolq.acc"]
    assert scores["lora"] == np.mean(right["lora"]) and math.isnan(scores["dora"])
    assert frame["lm_eval.gsm8k.5-shot.limit_120.exact_match,strict-match_stderr"]["lora"] == 0.01
    assert frame["lm_eval.boolq.examples"]["lora"] == 120 and not any(name == "lm_eval" for name in frame)


def test_runs_without_evaluations_have_no_such_table(tmp_path):
    store = Store(tmp_path / "runs")
    run(store, "lora", hits(0.5, 1))
    files = report.build(store.root, "demo", tmp_path / "out")
    assert files.sections[0].harness == []
    said = [file.read_text() for file in (files.page, files.markdown, files.table, files.runs)]
    assert not any("lm-eval" in text or "lm_eval" in text for text in [*said, report.text(files.sections)])


def test_the_newest_counts_of_evaluations_that_may_be_compared(tmp_path):
    store = Store(tmp_path)
    one = run(store, "lora", hits(0.5, 1))
    for share in (0.3, 0.6, 0.9):
        evaluate(store, one, "boolq", hits(share, 2))
    (column,) = only_section(store).harness
    assert column.cells[0].estimate.value == np.mean(hits(0.9, 2))
    assert len(store.get(one).result.lm_eval) == 3


@pytest.mark.parametrize(
    ("other", "title", "words"),
    [
        ({"task_version": "2.0"}, "boolq acc, version 2.0", "version"),
        ({"prompts_sha256": "c" * 64}, "boolq acc, prompts cccccccc", "prompts"),
        ({"documents_sha256": "c" * 64}, "boolq acc, documents cccccccc", "documents"),
        ({"shots": 5}, "boolq acc, 5-shot", "shots"),
        ({"limit": 120}, "boolq acc, limit 120", "limit"),
        (
            {"limit": 120, "prompts_sha256": "c" * 64, "documents_sha256": "d" * 64},
            "boolq acc, limit 120",
            "limit",
        ),
    ],
)
def test_evaluations_of_another_kind_are_neither_averaged_nor_compared(tmp_path, other, title, words):
    store = Store(tmp_path)
    for seed in (1, 2):
        right = {method: hits(0.6, seed + place) for place, method in enumerate(("lora", "row_sft"))}
        own = {method: run(store, method, answers, seed) for method, answers in right.items()}
        evaluate(store, own["lora"], "boolq", right["lora"])
        evaluate(store, own["row_sft"], "boolq", right["row_sft"], **(other if seed == 2 else {}))
    section = only_section(store)
    columns = {column.title: column for column in section.harness}
    assert len(columns) == 2 and title in columns
    ours = next(place for place, line in enumerate(section.lines) if line.method == "row_sft")
    (usual,) = (column for name, column in columns.items() if name != title)
    assert [columns[title].cells[ours].estimate.seeds, usual.cells[ours].estimate.seeds] == [1, 1]
    assert columns[title].cells[1 - ours] is None and columns[title].cells[ours].minus_lora is None
    assert usual.cells[ours].minus_lora.seeds == 1
    said = " ".join(notes(section))
    assert f"boolq was evaluated in 2 ways, which differ in {words}: " in said
    assert "Evaluated for fewer seeds than the row has: " in said and "row-SFT (1 of 2)" in said
    assert {column.key for column in section.harness} <= set(rowsft.load_runs(tmp_path))


def test_a_record_of_before_has_its_number_and_says_what_is_missing(tmp_path):
    store = Store(tmp_path)
    evaluate(store, run(store, "lora", hits(0.5, 1)), "boolq", hits(0.5, 1), kept=False)
    section = only_section(store)
    (cell,) = section.harness[0].cells
    assert (cell.estimate.value, cell.estimate.low, cell.minus_full) == (np.mean(hits(0.5, 1)), None, None)
    assert any("without results per example" in note and "boolq acc" in note for note in notes(section))


def test_tasks_of_a_group_stand_in_the_files_alone(tmp_path):
    store = Store(tmp_path)
    one = run(store, "lora", hits(0.5, 1))
    evaluate(store, one, "mmlu_law", hits(0.5, 1), part_of="mmlu")
    evaluate(store, one, "mmlu", hits(0.5, 1), kept=False, main_metric="acc,none")
    section = only_section(store)
    assert [column.title for column in section.harness] == ["mmlu acc"]
    said = " ".join(notes(section))
    assert "A group has no examples of its own" in said and "evaluate again" not in said
    assert "lm_eval.mmlu_law.acc" in rowsft.load_runs(tmp_path)


def test_files_are_read_of_what_is_compared_alone_and_a_damaged_one_counts_as_absent(tmp_path, caplog):
    store = Store(tmp_path)
    for seed in (1, 2):
        one = run(store, "dora", hits(0.5, seed), seed)
        result = evaluate(store, one, "boolq", hits(0.5, seed))
        (store.root / one / result.samples.path).write_text("{")
    assert only_section(store).harness[0].cells[0].estimate.seeds == 2 and caplog.text == ""
    two = run(store, "lora", hits(0.5, 3))
    evaluate(store, two, "boolq", hits(0.5, 3))
    section = only_section(store)
    assert section.lines[1].method == "dora" and section.harness[0].cells[1].minus_lora is None
    assert caplog.text.count("boolq.jsonl is damaged") == 2


def perplexities(key):
    generator = np.random.default_rng(4)
    pairs = [[-9 * generator.random(), int(generator.integers(1, 9))] for _ in range(50)]
    mean = -sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs)
    return pairs, mean / math.log(2) if key.startswith("bits") else math.exp(mean)


def f1(labels, predicted) -> float:
    both = sum(a * b for a, b in zip(labels, predicted, strict=True))
    return 2 * both / (sum(labels) + sum(predicted))


def matthews(labels, predicted) -> float:
    return float(np.corrcoef(labels, predicted)[0, 1])


def classes(formula):
    labels, predicted = hits(0.4, 6, 50), hits(0.6, 7, 50)
    return [list(pair) for pair in zip(labels, predicted, strict=True)], formula(labels, predicted)


@pytest.mark.parametrize(
    ("key", "made"),
    [
        ("f1,none", lambda: classes(f1)),
        ("mcc,none", lambda: classes(matthews)),
        *((f"{name},none", lambda name=name: perplexities(name)) for name in ("word_perplexity", "byte_perplexity")),
        ("bits_per_byte,none", lambda: perplexities("bits")),
        ("perplexity,none", lambda: ([-2.5, -700.0 / 2, -1.0], math.exp((2.5 + 350 + 1) / 3))),
    ],
)
def test_metrics_of_all_examples_are_recomputed_from_their_parts(tmp_path, key, made):
    store = Store(tmp_path)
    one = run(store, "lora", hits(0.5, 1))
    values, recorded = made()
    result = evaluate(store, one, "odd", values, key, recorded=float(recorded))
    scores = scored_samples(store.get(one), result, key)
    assert scores.metric(np.arange(len(values))) == pytest.approx(recorded)
    assert len(scores.draws) > 100 and np.isfinite(scores.draws).all()
    wrong = result.changed(metrics={key: 2 * float(recorded) + 1})
    assert scored_samples(store.get(one), wrong, key) is None


def test_two_runs_are_compared_by_the_tasks_that_both_have_alike(tmp_path):
    store, right = Store(tmp_path), [hits(0.5, 1), hits(0.8, 2)]
    ids = [run(store, method, own) for method, own in zip(("lora", "row_sft"), right, strict=True)]
    for one, own in zip(ids, right, strict=True):
        evaluate(store, one, "boolq", own)
    evaluate(store, ids[1], "piqa", right[1])
    numbers = {number.name: number for number in compare(*ids, store.root).numbers}
    boolq, primary = numbers["lm_eval.boolq.acc"], numbers["metrics.test.accuracy"]
    assert (boolq.a, boolq.b, boolq.paired) == (primary.a, primary.b, primary.paired) and boolq.paired is not None
    assert numbers["lm_eval.piqa.acc"].a is None and numbers["lm_eval.piqa.acc"].b == np.mean(right[1])
    evaluate(store, ids[1], "boolq", right[1], prompts_sha256="c" * 64)
    names = [number.name for number in compare(*ids, store.root).numbers if number.name.startswith("lm_eval.boolq")]
    assert sorted(names) == ["lm_eval.boolq.prompts_aaaaaaaa.acc", "lm_eval.boolq.prompts_cccccccc.acc"]
