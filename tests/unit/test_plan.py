"""A plan held against real steps, closed forms and torch's own counts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AlbertConfig, AutoConfig, AutoModelForCausalLM, DebertaV2Config, T5Config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from plan_accuracy import Case, attached, batch_of, compare, gpu_grid, grid, planned_bytes

from rowsft.compose import compose
from rowsft.errors import UserError
from rowsft.models import SHIPPED_CONFIGS
from rowsft.plan import _told, plan, scoring
from rowsft.plan.advice import ways_out
from rowsft.plan.autocast import autocast, autocasting, claimed_alike, claims_hold
from rowsft.plan.cost import Costs
from rowsft.plan.fit import Demand
from rowsft.plan.scene import scene_of
from rowsft.plan.step import plan_step
from rowsft.plan.without_data import without_data
from rowsft.settings import trainer_settings

# Autograd sums a gradient of three numbers in another order there.
NOT_EXACT = {("bert", "full")}
# Numbers in an expression, which autocast keeps in 16 bit here and there.
AUTOCAST_BYTES = 4


def named(case):
    return f"{case.family}-{case.method.replace(' ', '-')}{'-autocast' * case.autocast}"


def planned(*overrides):
    config = compose(list(overrides))
    return plan(config, trainer_settings(config))


SMALL = ["model=minilm", "task=sentiment", "trainer.device=cpu", "trainer.batch_size=2", "task.max_length=8"]


@pytest.mark.parametrize(
    "case", [case for case in grid(False) if (case.family, case.method) not in NOT_EXACT], ids=named
)
def test_planned_bytes_are_the_measured_ones(case):
    found = compare(case)
    assert abs(found["planned_bytes"] - found["measured_bytes"]) <= AUTOCAST_BYTES * case.autocast


@pytest.mark.parametrize("method", ["row_sft", "row_sft in", "lora"])
def test_checkpointing_is_planned_to_the_byte(method):
    """torch leaves the random state, which a recomputation keeps aside, out on the meta device."""
    found = compare(small_case(method=method, attention="eager", checkpointing=True, padded=False))
    assert found["planned_bytes"] == found["measured_bytes"]


@pytest.mark.parametrize("autocast", [False, True])
def test_a_mixture_of_experts_is_planned_to_the_byte_in_32_bit(autocast):
    """torch's kernel without data for the experts' products takes bfloat16 alone."""
    case = small_case(family="mixtral", attention="eager", padded=False, autocast=autocast)
    found = compare(case)
    assert found["planned_bytes"] == found["measured_bytes"]


def small_case(**changes):
    settings = {"family": "llama", "method": "row_sft", "layers": 2, "width": 32, "batch": 2, "length": 16}
    settings |= {"dtype": "float32", "attention": "sdpa", "checkpointing": False, "padded": True}
    return Case(**{**settings, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"padded": False}, {"dtype": "bfloat16"}, {"checkpointing": True}, {"autocast": True}]
)
def test_fused_attention_is_planned_within_a_percent(changes):
    assert abs(compare(small_case(**changes))["relative_error"]) < 0.01


@pytest.mark.parametrize(("gpu", "kind"), [(False, torch.bfloat16), (True, torch.float32)])
def test_a_gpus_autocast_keeps_in_32_bit_what_a_cpus_does_not(gpu, kind):
    """torch's documented lists: CUDA's has layer_norm and softmax among its float32 operators, the CPU's has not."""
    with torch.device("meta"):
        model = autocasting(torch.nn.Linear(8, 8), "bf16")
        given = claimed_alike(torch.empty(4, 8), model)
    with claims_hold(model, gpu), autocast("bf16"):
        linear = torch.nn.functional.linear(given, model.weight)
        assert linear.dtype == torch.bfloat16
        assert torch.nn.functional.layer_norm(linear, (8,)).dtype == kind
        assert linear.softmax(-1).dtype == kind
    assert torch.nn.functional.layer_norm(torch.zeros(2, 8, dtype=torch.bfloat16), (8,)).dtype == torch.bfloat16


def test_evaluation_is_planned_under_autocast():
    plain, cast = (planned(*SMALL, f"trainer={name}", "method=none") for name in ("default", "bf16"))
    assert 0 < cast.evaluation_bytes != plain.evaluation_bytes


def test_checkpointing_and_shorter_texts_save_memory():
    usual = planned_bytes(small_case(layers=6))
    assert planned_bytes(small_case(layers=6, checkpointing=True)) < usual
    assert planned_bytes(small_case(layers=6, length=8)) < usual


@pytest.mark.parametrize(("family", "method"), [("llama", "row_sft"), ("mixtral", "row_sft"), ("mixtral", "full")])
def test_flops_are_those_that_torch_counts(family, method):
    case = small_case(family=family, method=method, attention="eager", padded=False)
    model, batch = attached(case), batch_of(case)
    if family == "mixtral":
        # One expert after the other by plain products: torch does not count those of a group.
        model.config._experts_implementation = "eager"
    with FlopCounterMode(display=False) as counted:
        model(**batch).loss.backward()
    with torch.device("meta"):
        blank = attached(case)
    step = plan_step(blank, {name: tensor.to("meta") for name, tensor in batch.items()}, False, False)
    assert step.costs.flops == counted.get_total_flops()


def test_of_an_indexed_tensor_only_the_entries_taken_or_put_are_moved():
    weight, ids, wide = torch.zeros(100, 8), torch.tensor([3, 5]), torch.zeros(100, 2)
    rows, row_bytes, id_bytes = weight[:2].clone(), 2 * 8 * 4, 2 * 8
    for work, expected in (
        (lambda: weight.index_select(0, ids), 2 * row_bytes + id_bytes),
        (lambda: torch.index_select(weight, 0, ids, out=rows), 2 * row_bytes + id_bytes),
        (lambda: weight[ids], 2 * row_bytes + id_bytes),
        (lambda: torch.nn.functional.embedding(ids, weight), 2 * row_bytes + id_bytes),
        (lambda: weight.index_copy_(0, ids, rows), 2 * row_bytes + id_bytes),
        (lambda: weight.__setitem__((slice(None), ids), wide), 2 * wide.nbytes + id_bytes),
        (lambda: torch.empty_like(weight), 0),
        (lambda: weight.add_(1), weight.nbytes),
    ):
        with Costs() as costs:
            work()
        assert costs.bytes_moved == expected


def test_parts_and_parameters_add_up():
    result = planned(*SMALL, "method=row_sft", "method.importance=l2", "budget.rows=4")
    # 4 rows with their biases of query, key, value and both outputs, and of the wide dense, in 6 layers.
    assert result.trainable.total() - result.head_parameters == 6 * 4 * (5 * (384 + 1) + (1536 + 1))
    peak = result.step.peak
    assert sum(peak.parts.values()) == result.peak_bytes
    assert peak.parts["trainable_weights"] == 4 * result.trainable.total()
    assert peak.parts["optimizer_state"] >= 2 * peak.parts["trainable_weights"]


GPU_CELLS = [case for case in gpu_grid(False) if case.method in ("row_sft", "lora", "dora")]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: its allocator says what a step takes")
@pytest.mark.parametrize("case", GPU_CELLS, ids=lambda case: f"{case.method}-{case.attention}-{case.checkpointing}")
def test_a_billion_parameters_are_planned_within_three_percent_on_a_gpu(case):
    assert abs(compare(case)["relative_error"]) < 0.03


@pytest.mark.parametrize("case", [*gpu_grid(True)][::8], ids=lambda case: f"{case.width}-{case.method}")
def test_a_gpus_cells_are_planned_without_one(case):
    """Weights, gradients and state of a published size are there; nothing is measured."""
    small = planned_bytes(replace(case, layers=2))
    assert planned_bytes(replace(case, layers=3)) > small > 2 * 2 * 128256 * case.width


def test_gpu_tensors_come_in_blocks():
    result = planned(*SMALL, "trainer.device=auto", "method=lora", "budget.rows=4")
    assert all(size % 512 == 0 for size in result.step.peak.parts.values())


def test_a_global_choice_is_bounded():
    large = ["trainer.batch_size=16", "task.max_length=64", "budget.rows=4"]
    result = planned(*SMALL, *large, "method=row_sft", "method.importance=l2", "method.scope=global")
    assert set(result.bounds) == {"even", "last layers", "costliest layers"}
    assert result.bounds["last layers"] < result.bounds["even"]
    assert result.peak_bytes == max(result.bounds.values())


@pytest.mark.parametrize("importance", ["taylor", "fisher", "wanda", "zo_taylor", "lowest(taylor_row)"])
def test_scoring_is_planned(importance):
    result = planned(*SMALL, "method=row_sft", f"method.importance={importance}", "budget.rows=4")
    assert result.selection_bytes > result.step.peak.parts["base_weights"] / 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method=row_sft", "method.importance=labelwise(taylor,max)"],
            r"cannot be planned: it needs values.*measure it",
        )
    ],
)
def test_what_cannot_be_known_is_said(overrides, message):
    with pytest.raises(UserError, match=message):
        planned(*SMALL, *overrides)


def fake():
    """What a plan under autocast is made of."""
    with FakeTensorMode():
        return torch.empty(2)


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.empty(2, device="meta").tolist(),
        lambda: torch.empty(2, device="meta").sum().item(),
        lambda: torch.empty(2, device="meta").nonzero(),
        lambda: torch.empty(2, device="meta").unique(),
        lambda: torch.empty(2, device="meta").numpy(),
        lambda: fake().nonzero(),
        lambda: fake().sum().item(),
    ],
)
def test_what_torch_refuses_without_data_is_told_and_nothing_else(work):
    config = compose(SMALL)
    scene = scene_of(config, trainer_settings(config))
    with pytest.raises(UserError, match="cannot be planned"):
        _told(scene, work)

    def bug():
        torch.empty(2, 3, device="meta") @ torch.empty(2, 3, device="meta")

    with pytest.raises(RuntimeError, match="same reduction dim"):
        _told(scene, bug)


def test_an_encoder_decoder_is_refused_as_a_run_refuses_it(tmp_path):
    sizes = {"vocab_size": 99, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    T5Config(**sizes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"encoder-decoder models \(t5\) are not supported"):
        planned(*SMALL, f"model.source={tmp_path}")


def test_a_configuration_without_sizes_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "vocab_size": 99}))
    with pytest.raises(UserError, match=r"does not say num_hidden_layers"):
        planned(*SMALL, f"model.source={tmp_path}")


def test_a_card_holds_tensors_margin_and_context():
    assert Demand(10 * 10**9).card_bytes == int(10.5 * 10**9) + 10**9
    assert Demand(10 * 10**9).cards() == {16: True, 24: True, 40: True, 48: True, 80: True, 141: True}
    assert Demand(15 * 10**9).cards()[16] is False


PUBLISHED_PARAMETERS = {
    "meta-llama--Llama-2-7b-hf": 6_738_415_616,
    "meta-llama--Meta-Llama-3-8B": 8_030_261_248,
    "mistralai--Mistral-7B-v0.1": 7_241_732_096,
    "google--gemma-7b": 8_537_680_896,
    "package--smollm2_135m": 134_515_008,
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_shipped_configurations_have_the_published_sizes(name):
    given = json.loads((SHIPPED_CONFIGS / f"{name}.json").read_text())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**given))
    assert model.num_parameters() == PUBLISHED_PARAMETERS[name]


def test_ways_out_end_with_what_fits():
    config = compose([*SMALL, "trainer.device=auto", "trainer.batch_size=64", "task.max_length=128", "method=full"])
    settings = trainer_settings(config)
    whole = plan(config, settings)
    card_gb = 0.5 * (whole.demand.card_bytes + plan(config, settings, {"batch_size": 1}).demand.card_bytes) / 10**9
    lines = ways_out(whole, lambda changes: plan(config, settings, changes), card_gb)
    assert lines[0].startswith("trainer.gradient_checkpointing=true: needs")
    assert lines[-1].endswith(f"fits {card_gb:g} GB")
    hopeless = ways_out(whole, lambda changes: plan(config, settings, changes), 1.0)
    assert "trained weights and their optimizer state: train fewer" in hopeless[-1]


def test_llama3_8b_for_programs_in_little_memory(tmp_path):
    """The command as users type it: JSON alone on standard output, and no weight of 16 GB anywhere."""
    overrides = ["model=llama3_8b", "method=row_sft", "budget.rows=128", "task=prompt_response", "trainer.batch_size=1"]
    # VmHWM is this process's own; ru_maxrss starts at what the parent had when it forked.
    measured = "import sys; from rowsft import cli\n"
    measured += "try: cli.main(sys.argv[1:])\n"
    measured += "finally: print([l.split()[1] for l in open('/proc/self/status') if 'VmHWM' in l][0], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", measured, "plan", *overrides, "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["trainable_parameters"] == 128 * 1_245_184
    assert told["total_parameters"] == 8_030_261_248
    assert told["parts"]["base_weights"] >= 2 * 8_030_261_248
    assert told["peak_bytes"] == sum(told["parts"].values())
    assert told["fits_card_gb"]["80"]
    assert not told["fits_card_gb"]["16"]
    most_kib = int(done.stderr.splitlines()[-1])
    assert most_kib < 2 * 2**20


def test_all_micro_batches_cost_alike():
    """The last one is run; measured against a run with three in tests/recipe."""
    one, two, five = (planned(*SMALL, "method=lora", f"trainer.gradient_accumulation={n}") for n in (1, 2, 5))
    assert (two.step.costs.flops, five.step.costs.flops) == (2 * one.step.costs.flops, 5 * one.step.costs.flops)
    assert five.peak_bytes == two.peak_bytes >= one.peak_bytes


def test_a_classifier_that_asks_what_its_labels_are_is_told(tmp_path):
    """DeBERTa's loss would look for labels that count; a run names the problem instead."""
    sizes = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    DebertaV2Config(**sizes, num_attention_heads=2, pooler_hidden_size=16).save_pretrained(tmp_path)
    given = ["model=deberta_v3_base", f"model.source={tmp_path}", "model.attn_implementation=eager", "budget.rows=2"]
    assert planned(*SMALL, *given, "method=row_sft").selection_bytes > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.max_length=0", r"task\.max_length=0: expected a whole number, at least 2"),
        ("task.max_length=null", r"task\.max_length=None: expected a whole number"),
        ("task.max_length=long", r"task\.max_length=long: expected a whole number"),
        ("task.max_length=2.5", r"task\.max_length=2\.5: expected a whole number"),
        ("task.max_length=100000", r"task\.max_length=100000: the model has 512 positions; lower it"),
        ("method.channel=up", r"method\.channel=up: unknown; use one of"),
    ],
)
def test_values_that_a_run_refuses_are_refused_alike(override, message):
    with pytest.raises(UserError, match=message):
        planned(*SMALL, "method=row_sft", override)


def test_all_calibration_batches_lie_on_a_gpu():
    given = [*SMALL, "trainer.device=auto", "method=row_sft", "budget.rows=4"]
    one, eleven = (planned(*given, f"trainer.calibration_batches={count}").selection_bytes for count in (1, 11))
    # Of two examples of 8 tokens: ids, mask, types and labels, a block of 512 bytes each.
    assert eleven - one == 10 * 4 * 512


@pytest.mark.parametrize(
    ("gpu", "given", "weight", "kept"),
    [
        (False, torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (False, torch.bfloat16, torch.float32, torch.float32),
        (False, torch.bfloat16, None, torch.bfloat16),
        (False, torch.float32, torch.float32, torch.float32),
        (True, torch.bfloat16, torch.bfloat16, torch.float32),
    ],
)
def test_a_cpus_norm_keeps_its_statistics_in_16_bit(gpu, given, weight, kept):
    def statistics(device):
        scale = None if weight is None else torch.ones(8, dtype=weight, device=device)
        return torch.native_layer_norm(torch.ones(4, 8, dtype=given, device=device), (8,), scale, None, 1e-5)[1:]

    with without_data(gpu, padded=False):
        assert [tensor.dtype for tensor in statistics("meta")] == [kept, kept]
    if not gpu:
        assert [tensor.dtype for tensor in statistics("cpu")] == [kept, kept]


LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 99}
LLAMA |= {"num_attention_heads": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # The class would fill in those of a Llama of 7 billion parameters.
        ({"intermediate_size": ...}, "does not say intermediate_size"),
        ({"num_attention_heads": ...}, "does not say num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is no multiple of num_key_value_heads=3"),
        ({"hidden_size": -64}, r"no model of the task's kind can be made.*negative dimension"),
        ({"hidden_size": 0}, r"no model of the task's kind"),
        ({"hidden_size": "big"}, r"no model of the task's kind.*expected int, got str"),
        ({"num_attention_heads": 5}, r"no model of the task's kind.*not a multiple"),
        ({"num_attention_heads": 0}, r"no model of the task's kind"),
        ({"hidden_act": "nope"}, r"no model of the task's kind"),
        ({"dtype": "float77"}, r"no model of the task's kind"),
        ({"model_type": "vit"}, r"no model of the task's kind"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "weights are quantised"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_model_is_one_line(tmp_path, changes, message):
    given = {name: value for name, value in {**LLAMA, **changes}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(UserError, match=message) as raised:
        planned("model=llama2_7b", "task=prompt_response", "method=lora", f"model.source={tmp_path}")
    assert "\n" not in str(raised.value)


def test_a_kernel_that_is_not_installed_is_blamed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    given = ["model=llama2_7b", "task=prompt_response", "method=lora", "model.attn_implementation=flash_attention_2"]
    with pytest.raises(UserError, match=r"attn_implementation=flash_attention_2: cannot be used here"):
        planned(*given, f"model.source={tmp_path}")


def test_a_model_that_cannot_recompute_is_said(tmp_path):
    sizes = {"vocab_size": 99, "embedding_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    AlbertConfig(**sizes, num_attention_heads=2).save_pretrained(tmp_path)
    given = [f"model.source={tmp_path}", "model.head_modules=[classifier]", "method=lora", "budget.rows=2"]
    with pytest.raises(UserError, match=r"gradient_checkpointing=true: Albert.* does not support"):
        planned(*SMALL, *given, "trainer=checkpointing", "trainer.device=cpu")


@pytest.mark.parametrize("importance", ["taylor2", "fisher", "taylor"])
def test_scorings_peak_is_that_of_all_passes(monkeypatch, importance):
    """A short batch keeps little, so layers go through one by one, and the widest of a block sets the peak."""
    given = [*SMALL, "method=row_sft", f"method.importance={importance}", "budget.rows=4"]
    told = planned(*given).selection_bytes
    monkeypatch.setattr(scoring, "_LEAST", 10**6)
    # But for the scores of the layers that are through: a number a row.
    assert told == pytest.approx(planned(*given).selection_bytes, rel=1e-3)
