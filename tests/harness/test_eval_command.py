"""`rowsft eval`: the adapted model is scored, and the record holds what came out beside all that it held before."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rowsft.harness import Settings, adapted, evaluate_runs
from rowsft.report import sections
from rowsft.store import Store
from rowsft.store.files import sha256


def by_hand(model, tokenizer, rows: list[dict], prompt: str) -> tuple[list[bool], list[bool]]:
    """Hits of acc and of acc_norm, of two answers each, by one plain forward a sequence."""
    hits, hits_norm = [], []
    for row in rows:
        sums = []
        for answer in row["a"]:
            ids, before = tokenizer(f"{row['q']}{prompt} {answer}")["input_ids"], tokenizer(row["q"])["input_ids"]
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logs[i - 1, ids[i]]) for i in range(len(before), len(ids))))
        norms = [total / len(answer) for total, answer in zip(sums, row["a"], strict=True)]
        hits.append(int(np.argmax(sums)) == row["label"])
        hits_norm.append(int(np.argmax(norms)) == row["label"])
    return hits, hits_norm


def samples_of(run: Path, result) -> list[dict]:
    """The lines of the result's file, which is as it was recorded."""
    file = run / result.samples.path
    assert sha256(file) == result.samples.sha256
    return [json.loads(line) for line in file.read_text().splitlines()]


def without_results(file: Path) -> dict:
    record = json.loads(file.read_text())
    for attempt in record["attempts"]:
        attempt.pop("lm_eval", None)
    return record


def test_the_adapted_model_is_scored_and_the_record_holds_it_beside_all_else(workshop, runs, tasks):
    file = workshop.folder / "runs" / runs["lora"] / "record.json"
    before, adapter = without_results(file), sha256(file.parent / "attempt-1/adapter")
    command = ["eval", runs["lora"], runs["none"], "--lm-eval", "pick,truth", "--include-path", str(tasks)]
    done = workshop.rowsft(*command)
    assert done.returncode == 0, done.stderr
    assert "acc_norm" in done.stdout and runs["lora"] in done.stdout
    assert without_results(file) == before and sha256(file.parent / "attempt-1/adapter") == adapter
    base = AutoModelForCausalLM.from_pretrained(workshop.folder / "models/llama")
    tokenizer = AutoTokenizer.from_pretrained(workshop.folder / "models/llama")
    rows = [json.loads(line) for line in (tasks / "pick.jsonl").read_text().splitlines()]
    plain = by_hand(base, tokenizer, rows, "\n")
    tuned = by_hand(PeftModel.from_pretrained(base, file.parent / "attempt-1/adapter"), tokenizer, rows, "\n")
    assert plain != tuned, "the test could not tell them apart"
    store = Store(workshop.folder / "runs")
    for run, expected in (("lora", tuned), ("none", plain)):
        pick, truth = store.get(runs[run]).result.lm_eval
        assert (pick.task, truth.task) == ("pick", "truth")
        means = [float(np.mean(hits)) for hits in expected]
        assert [pick.metrics["acc,none"], pick.metrics["acc_norm,none"]] == pytest.approx(means)
        assert pick.main_metric == "acc,none" and pick.part_of is None
        kept = samples_of(store.root / runs[run], pick)
        assert [line["id"] for line in kept] == list(range(30)) and len({line["doc"] for line in kept}) == 30
        assert [line["acc,none"] for line in kept] == expected[0]
        assert [line["acc_norm,none"] for line in kept] == expected[1]
        assert pick.metrics["acc_stderr,none"] > 0 and pick.higher_is_better["acc"] is True
        assert (pick.task_version, pick.examples, pick.limit, pick.shots) == ("1.5", 30, None, 0)
        assert pick.harness_version >= "0.4.13" and pick.command.startswith("rowsft eval ")
        assert pick.environment.packages["transformers"] == transformers.__version__
    lora, none = (store.get(runs[name]).result.lm_eval[0] for name in ("lora", "none"))
    assert lora.adapter_difference > 0 and lora.merged_difference <= lora.merged_tolerance
    assert none.adapter_difference is None
    assert lora.prompts_sha256 == none.prompts_sha256 and len(lora.prompts_sha256) == 64


def test_a_later_evaluation_is_added_and_tells_by_its_hashes_what_differs(workshop, runs, tasks):
    store = Store(workshop.folder / "runs")
    had = len(store.get(runs["row_sft"]).result.lm_eval or [])

    def evaluated(**settings):
        (outcome,) = evaluate_runs([runs["row_sft"]], store.root, Settings(["pick"], tasks, **settings), say=str)
        return outcome.results[0]

    whole, part = evaluated(), evaluated(limit=4)
    assert (whole.examples, part.examples, part.limit) == (30, 4, 4)
    assert whole.config_sha256 == part.config_sha256 and whole.prompts_sha256 != part.prompts_sha256
    task = tasks / "pick.yaml"
    task.write_text(task.read_text().replace("{{q}}\\n", "{{q}} w5"))
    other = evaluated()
    assert other.config_sha256 != whole.config_sha256 and other.prompts_sha256 != whole.prompts_sha256
    assert other.documents_sha256 == whole.documents_sha256
    kept = store.get(runs["row_sft"]).result.lm_eval[had:]
    assert kept == [whole, part, other]
    assert [len(samples_of(store.root / runs["row_sft"], one)) for one in kept] == [30, 4, 30]


def test_a_report_holds_methods_against_each_other_on_the_same_documents(workshop, runs, tasks):
    names, root = ("row_sft", "lora", "full"), workshop.folder / "runs"
    outcomes = evaluate_runs([runs[name] for name in names], root, Settings(["pick"], tasks, limit=20), say=str)
    scores = {out.record.id: out.results[0].metrics["acc,none"] for out in outcomes}
    assert len(set(scores.values())) > 1, "the test could not tell them apart"
    (section,) = sections(root)
    (column,) = (column for column in section.harness if column.title == "pick acc, limit 20")
    cells = {line.method: line.harness[column.key] for line in section.lines if column.key in line.harness}
    assert {name: cell.estimate.value for name, cell in cells.items()} == {name: scores[runs[name]] for name in names}
    against = cells["row_sft"].minus_lora
    assert against.value == pytest.approx(scores[runs["row_sft"]] - scores[runs["lora"]]) and against.examples == 20
    assert against.low <= against.value <= against.high and cells["row_sft"].minus_full is not None
    assert all(cell.estimate.low <= cell.estimate.value <= cell.estimate.high for cell in cells.values())


def test_a_group_has_its_own_result_and_its_tasks_say_that_they_are_part_of_it(workshop, runs, tasks):
    how = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (tasks / "both.yaml").write_text(f"group: both\ntask: [pick, truth]\n{how}metadata: {{version: 2.0}}\n")
    (tasks / "loose.yaml").write_text("group: loose\ntask: [pick, truth]\n")
    root = workshop.folder / "runs"

    def evaluated(name):
        (outcome,) = evaluate_runs([runs["none"]], root, Settings([name], tasks), say=str)
        return {result.task: result for result in outcome.results}

    found, loose = evaluated("both"), evaluated("loose")
    assert [(name, one.part_of) for name, one in found.items()] == [("pick", "both"), ("truth", "both"), ("both", None)]
    whole = found["both"]
    shares = [found[name].metrics["acc,none"] for name in ("pick", "truth")]
    assert whole.main_metric == "acc,none" and whole.metrics["acc,none"] == pytest.approx(np.mean(shares))
    assert whole.samples.path is None and len(whole.prompts_sha256) == len(whole.documents_sha256) == 64
    # A group without a result of its own is only a way to name tasks.
    assert {name: one.part_of for name, one in loose.items()} == {"pick": None, "truth": None}
    assert loose["pick"].prompts_sha256 == found["pick"].prompts_sha256


def test_runs_of_one_base_load_it_once_and_each_is_scored_as_alone(workshop, runs, tasks, monkeypatch):
    loads = []
    load = adapted.load
    monkeypatch.setattr(adapted, "load", lambda config, head: loads.append(config["source"]) or load(config, head))
    names = ["row_sft", "full", "lora", "none", "dora"]
    settings, root = Settings(["pick", "truth"], tasks), workshop.folder / "runs"
    together = {out.record.id: out for out in evaluate_runs([runs[n] for n in names], root, settings, say=str)}
    assert len(loads) == 2 and str(workshop.folder / "models/llama") in loads
    for name in names:
        (alone,) = evaluate_runs([runs[name]], root, settings, say=str)
        both = zip(alone.results, together[runs[name]].results, strict=True)
        assert all(one.metrics == other.metrics for one, other in both)
        assert all(one.adapter_difference == other.adapter_difference for one, other in both)


def test_an_adapter_that_does_nothing_is_refused_and_what_came_before_it_stays(workshop, runs, tasks, tmp_path):
    store = tmp_path / "runs"
    for name in ("row_sft", "lora"):
        shutil.copytree(workshop.folder / "runs" / runs[name], store / runs[name])
    file = store / runs["lora"] / "attempt-1/adapter/adapter_model.safetensors"
    save_file({name: tensor * ("lora_B" not in name) for name, tensor in load_file(file).items()}, file)
    had = {name: len(Store(store).get(runs[name]).result.lm_eval or []) for name in ("row_sft", "lora")}
    command = ["eval", runs["row_sft"], runs["lora"], "--lm-eval", "truth", "--include-path", str(tasks)]
    done = workshop.rowsft(*command, "--store", str(store))
    assert done.returncode == 2 and "changes no logit of the base model" in done.stderr.splitlines()[-1]
    assert f"│ {runs['row_sft']}" in done.stdout and f"│ {runs['lora']}" not in done.stdout
    has = {name: len(Store(store).get(runs[name]).result.lm_eval or []) for name in ("row_sft", "lora")}
    assert has == {"row_sft": had["row_sft"] + 1, "lora": had["lora"]}


def test_random_states_stay_as_they_were(workshop, runs, tasks):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    list(evaluate_runs([runs["lora"]], workshop.folder / "runs", Settings(["truth"], tasks, limit=2), say=str))
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lm-eval", "pikc"], "--lm-eval pikc: the harness knows no such task; close: pick"),
        (["--lm-eval", "pick,pick"], "a task is named twice"),
        (["--lm-eval", ","], "expected names of tasks"),
        (["--lm-eval", "pick", "--limit", "0"], "expected a whole number, 1 or more"),
        (["--lm-eval", "gone"], "without a network, name tasks on local files"),
    ],
)
def test_mistakes_are_one_line_and_leave_the_record(workshop, runs, tasks, arguments, message):
    (tasks / "gone.yaml").write_text((tasks / "pick.yaml").read_text().replace("pick", "gone"))
    file = workshop.folder / "runs" / runs["full"] / "record.json"
    before = file.read_bytes()
    done = workshop.rowsft("eval", runs["full"], *arguments, "--include-path", str(tasks))
    assert done.returncode == 2, done.stdout
    assert done.stderr.splitlines()[-1].startswith("rowsft: error: ") and message in done.stderr.splitlines()[-1]
    assert file.read_bytes() == before


def test_a_tokenizer_that_ends_every_text_is_refused(workshop, runs, tasks):
    """The harness would take the end for a part of the prompt, without a word."""
    from tokenizers import processors

    from rowsft.errors import UserError
    from rowsft.harness.adapted import Adapted
    from rowsft.harness.checks import Checks
    from rowsft.harness.measuring import Tasks

    tokenizer = AutoTokenizer.from_pretrained(workshop.folder / "models/llama")
    ends = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = ends
    model = AutoModelForCausalLM.from_pretrained(workshop.folder / "models/llama")
    with pytest.raises(UserError, match="puts </s> at the end of every text"):
        Tasks(Settings(["pick"], tasks)).evaluated(Adapted("x", model, tokenizer, Checks(), None))
