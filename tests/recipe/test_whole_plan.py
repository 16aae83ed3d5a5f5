"""A plan held against the record of the run that it plans, by the same overrides."""

import json
import shutil

import pytest
import torch
from tiny import tiny_llama

from rowsft.config.compose import compose
from rowsft.config.run_plan import plan_run
from rowsft.config.settings import trainer_settings
from rowsft.plan import plan
from rowsft.runner.run import run


@pytest.fixture(scope="module")
def long_data(workshop, tmp_path_factory):
    """Data whose longest examples fill any length, next to short ones, so that the largest batch has padding."""
    folder = tmp_path_factory.mktemp("long")
    longs, shorts = " ".join(["w7"] * 60), "w1 w2 w3"
    texts = [longs if number % 4 else shorts for number in range(40)]
    rows = {
        # What is too long is cut from the prompts' start: their ends differ, so that no two share one.
        "pairs": [{"prompt": f"{text} w{number}", "response": text} for number, text in enumerate(texts)],
        "texts": [{"text": f"w{i} {text}", "label": ["bad", "good"][i // 2 % 2]} for i, text in enumerate(texts)],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def both(workshop, data, family, *overrides):
    """The plan from nothing but a configuration, and the memory that the run's record tells of."""
    task = {"llama": "pairs", "bert": "texts"}[family]
    # A classifier that decodes: such a model keeps keys and values for later tokens unless it is told not to.
    source = "llama" if "method=head" in overrides else family
    given = [
        *workshop.overrides(family),
        f"task.data.path={data / task}.jsonl",
        "task.max_length=24",
        "trainer.steps=2",
    ]
    given += overrides
    if family == "bert":
        given.append("task.labels=[bad,good]")
    if source != family:
        given += ["model.target_modules=[q_proj,v_proj]", "model.exclude_modules=null", "model.head_modules=[score]"]
        given.append(f"model.source={workshop.folder / 'models' / source}")
    config = compose([*given, f"model.source={without_weights(workshop, source)}"])
    planned = plan(config, trainer_settings(config))
    config = compose(given)
    outcome = run(plan_run(config), trainer_settings(config), rerun=True, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    record = json.loads((outcome.folder / "record.json").read_text())
    return planned, record["attempts"][-1]["memory"]


def without_weights(workshop, source):
    """A folder with a model's configuration alone."""
    bare = workshop.folder / "bare" / source
    bare.mkdir(parents=True, exist_ok=True)
    shutil.copy(workshop.folder / "models" / source / "config.json", bare)
    return bare


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", ["method=row_sft", "method.importance=l2"]),
        ("llama", ["method=lora", "trainer.gradient_accumulation=3", "trainer.batch_size=1"]),
        ("llama", ["method=dora", "trainer.gradient_checkpointing=true", "model.dtype=bfloat16"]),
        ("llama", ["method=row_sft", "method.importance=l2", "method.dropout=0.1"]),
        ("llama", ["method=row_sft", "method.importance=l2", "trainer=bf16"]),
        ("llama", ["method=lora", "trainer=bf16", "trainer.gradient_checkpointing=true"]),
        ("llama", ["method=row_sft", "method.importance=l2", "trainer=bf16", "model.dtype=bfloat16"]),
        ("bert", ["method=full"]),
        ("bert", ["method=head"]),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)
def test_the_planned_peak_is_that_of_the_run(workshop, long_data, family, overrides):
    planned, memory = both(workshop, long_data, family, *overrides)
    assert planned.peak_bytes == pytest.approx(memory["train"]["peak_allocated_bytes"], rel=1e-3)


EVALUATED = ["trainer.eval_batch_size=8", "trainer.evaluate=[validation]", "task.data.validation=0.5"]


@pytest.fixture
def one_thread():
    """A CPU's attention has a buffer for every thread, which no plan counts: here they would outgrow a tiny model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", ["method=row_sft", "method.importance=l2"]),
        ("llama", ["method=row_sft", "method.importance=l2", "model.dtype=bfloat16"]),
        ("llama", ["method=lora"]),
        ("llama", ["method=lora", "trainer=bf16"]),
        # Nothing has told this one to keep no keys and values.
        ("llama", ["method=none", "trainer.eval_batch_size=1"]),
        ("bert", ["method=row_sft", "method.importance=l2"]),
        ("bert", ["method=row_sft", "method.importance=l2", "trainer=bf16"]),
        ("bert", ["method=row_sft", "method.importance=l2", "model.dtype=bfloat16"]),
        ("bert", ["method=lora"]),
        ("bert", ["method=full", "trainer=bf16"]),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)
def test_the_planned_evaluation_is_that_of_the_run(workshop, long_data, family, overrides):
    """Of twenty rows, most of them of full length: a batch of those has no padding, the last one with such has."""
    planned, memory = both(workshop, long_data, family, *EVALUATED, *overrides)
    assert planned.evaluation_bytes == pytest.approx(memory["evaluate"]["peak_allocated_bytes"], rel=1e-3)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("importance", "trainer"), [("taylor", "default"), ("taylor2", "default"), ("taylor", "checkpointing")]
)
def test_the_planned_peaks_of_scoring_and_evaluating_are_those_of_the_run(workshop, long_data, importance, trainer):
    overrides = ["method=row_sft", f"method.importance={importance}", f"trainer={trainer}"]
    overrides += ["trainer.eval_batch_size=1", "trainer.evaluate=[train]"]
    planned, memory = both(workshop, long_data, "llama", *overrides)
    assert planned.selection_bytes == pytest.approx(memory["select"]["peak_allocated_bytes"], rel=1e-4)
    assert planned.evaluation_bytes == pytest.approx(memory["evaluate"]["peak_allocated_bytes"], rel=1e-4)
    for phase in ("select", "evaluate"):
        entered = memory["ledger"][phase]
        assert entered["peak_bytes"] == pytest.approx(entered["measured_peak_bytes"], rel=1e-4)


@pytest.fixture(scope="module")
def middling(workshop):
    """A model of so many layers that the scratch of one kernel is little."""
    folder = workshop.folder / "models" / "middling"
    shutil.copytree(workshop.folder / "models" / "llama", folder)
    tiny_llama(hidden_size=256, intermediate_size=768, num_hidden_layers=16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("instruction_set", ["ALL", "AVX512_CORE"])
def test_a_run_with_larger_instruction_sets_is_planned_within_a_percent(workshop, long_data, middling, instruction_set):
    """The tests keep to AVX2 (conftest.py); ALL is whatever this processor has, as a user's run takes it."""
    given = [*workshop.overrides("llama"), f"task.data.path={long_data}/pairs.jsonl", "trainer=bf16", "method=lora"]
    given += [f"model.source={middling}", "trainer.steps=2", *EVALUATED]
    config = compose([*given, f"model.source={without_weights(workshop, middling.name)}"])
    planned = plan(config, trainer_settings(config))
    done = workshop.rowsft("run", "--rerun", *given, ONEDNN_MAX_CPU_ISA=instruction_set, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    record = json.loads((plan_run(compose(given)).folder / "record.json").read_text())
    memory = record["attempts"][-1]["memory"]
    assert planned.peak_bytes == pytest.approx(memory["train"]["peak_allocated_bytes"], rel=0.01)
    assert planned.evaluation_bytes == pytest.approx(memory["evaluate"]["peak_allocated_bytes"], rel=0.01)
