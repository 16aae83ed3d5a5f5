"""`rowsft quantisation-error`: every number against brute force, the rows of a run, and what is refused."""

import csv
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from task_tools import bpe
from tiny import tiny_gpt2
from tiny_workshop import Workshop, build_workshop
from transformers import LlamaForCausalLM, LlamaModel

from rowsft import score
from rowsft.cli.main import main
from rowsft.errors import UserError
from rowsft.quantisation import int8, nf4
from rowsft.quantisation.low_rank import principal
from rowsft.quantisation.quantisers import quantiser
from rowsft.quantisation_error.layer import Arithmetic, Sizes, layer_errors
from rowsft.quantisation_error.weights import Weights
from rowsft.selection.ids import Chosen
from rowsft.store import Store
from rowsft.tasks.heads import CAUSAL_LM

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def llama(workshop) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(workshop.folder / "models/llama")


def ended(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def measured(workshop: Workshop, capsys, *arguments: str) -> dict:
    command = ["quantisation-error", *workshop.overrides("llama"), "method.importance=l2", "--steps", "1", "--json"]
    assert ended([*command, *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def starts(found: dict, layer: str | None = None) -> dict[str, dict]:
    lines = found["model"] if layer is None else [line for line in found["layers"] if line["layer"] == layer]
    return {line["start"]: line for line in lines}


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach() for name, layer in model.named_modules() if name.endswith(TARGETS)}


def by_name(found) -> dict:
    return {start.start: start for start in found.starts}


def test_uniformly_chosen_rows_leave_their_share_of_the_error():
    """E |error|^2 = (1 - k/d_out) |plain|^2 over draws of k rows."""
    weight, k = gaussian(64, 64), 16
    ratios = []
    for seed in range(80):
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:k]
        found = layer_errors(
            "layer", weight, {"rows": Chosen(rows, ids())}, Sizes(0, 0), Arithmetic(quantiser("nf4"), 1)
        )
        plain, kept = (by_name(found)[name].whole for name in ("plain", "rows"))
        ratios.append(kept.error_squared / plain.error_squared)
        assert found.uniform == pytest.approx(plain.error_squared * (1 - k / 64))
    assert math.sqrt(sum(ratios) / 80) == pytest.approx(math.sqrt(1 - k / 64), rel=4e-3)
    assert max(ratios) - min(ratios) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_columns_are_kept_to_the_rounding_of_the_adapter(dtype):
    weight, kept = gaussian(24, 64), Chosen(ids(2, 9, 20), ids(0, 33))
    arithmetic = Arithmetic(quantiser("nf4"), 1, dtype)
    found = by_name(layer_errors("layer", weight, {"kept": kept}, Sizes(3 * 64 + 2 * 21, 2), arithmetic))["kept"]
    mask = torch.zeros(24, 64, dtype=torch.bool)
    mask[kept.rows], mask[:, kept.columns] = True, True
    residual = weight - nf4.quantised(weight)
    held = torch.where(mask, residual.to(dtype).float(), 0)
    error = (residual - held).double()
    assert found.whole.absolute == pytest.approx(error.norm().item())
    assert found.whole.relative == pytest.approx((error.norm() / weight.double().norm()).item())
    assert found.own.absolute == pytest.approx(error[mask].norm().item())
    assert found.chosen == found.own
    assert found.own.weight_squared == pytest.approx(weight.double()[mask].square().sum().item())
    if dtype is torch.float32:
        assert found.own.absolute == 0
    else:
        assert 0 < found.own.absolute <= 2**-8 * residual[mask].norm()
    assert found.bits == quantiser("nf4").bits((24, 64)) + (3 * 64 + 2 * 21) * torch.finfo(dtype).bits


def test_starts_of_low_rank_are_those_of_a_singular_value_decomposition():
    weight, rank, chosen = gaussian(32, 64), 3, Chosen(ids(1, 5), ids())
    found = by_name(layer_errors("layer", weight, {"rows": chosen}, Sizes(128, rank), Arithmetic(quantiser("nf4"), 2)))
    plain = weight - nf4.quantised(weight)
    loftq = torch.linalg.svdvals(plain.double())[rank:].norm().item()
    assert found["LoftQ, 1 step"].whole.absolute == pytest.approx(loftq, rel=1e-5)
    rest = weight - principal(weight, rank).product
    pissa = (rest - nf4.quantised(rest)).double()
    assert found["PiSSA, 1 step"].whole.absolute == pytest.approx(pissa.norm().item(), rel=1e-6)
    assert found["PiSSA, 1 step"].chosen.absolute == pytest.approx(pissa[chosen.rows].norm().item(), rel=1e-6)
    assert found["PiSSA, 1 step"].own is None and found["PiSSA, 1 step"].parameters == rank * 96
    assert found["LoftQ, 2 steps"].whole.absolute < loftq < plain.norm()


def test_weights_that_are_not_finite_are_refused():
    weight = torch.full((4, 64), float("nan"))
    with pytest.raises(UserError, match="layer bad: its weight is not finite"):
        layer_errors("bad", weight, {"rows": Chosen(ids(0), ids())}, Sizes(64, 1), Arithmetic(quantiser("nf4")))


@pytest.mark.parametrize(("name", "quantise"), [("nf4", nf4.quantised), ("int8", int8.quantised)])
def test_the_command_measures_every_layer_of_a_checkpoint(name, quantise, workshop, llama, capsys):
    found = measured(workshop, capsys, "--quantiser", name)
    weights = weights_of(llama)
    assert [line["layer"] for line in found["layers"] if line["start"] == "plain"] == list(weights)
    errors = {layer: (weight - quantise(weight)).double() for layer, weight in weights.items()}
    for layer, weight in weights.items():
        here = starts(found, layer)
        assert here["plain"]["error"] == pytest.approx(errors[layer].norm().item(), rel=1e-6)
        own = score(llama, "l2", target_modules=list(TARGETS))[layer].topk(3).indices
        assert here["rows by l2"]["own_error"] == 0 == here["rows by l2"]["chosen_error"]
        assert here["plain"]["chosen_relative_error"] == pytest.approx(
            (errors[layer][own].norm() / weight.double()[own].norm()).item(), rel=1e-6
        )
        largest = errors[layer].square().sum(1).topk(3).indices
        left = errors[layer].clone()
        left[largest] = 0
        assert here["rows by error"]["error"] == pytest.approx(left.norm().item(), rel=1e-6)
        assert here["rows by error"]["error"] <= min(here["rows by l2"]["error"], here["rows by random"]["error"])
    total = math.sqrt(sum(error.square().sum().item() for error in errors.values()))
    norm = math.sqrt(sum(weight.double().square().sum().item() for weight in weights.values()))
    whole = starts(found)
    assert whole["plain"]["error"] == pytest.approx(total, rel=1e-6)
    assert whole["plain"]["relative_error"] == pytest.approx(total / norm, rel=1e-6)
    assert whole["rows by l2"]["parameters"] == sum(3 * weight.shape[1] for weight in weights.values())
    assert whole["LoftQ, 1 step"]["error"] < whole["plain"]["error"]
    scales = sum(weight.numel() / 64 if name == "nf4" else weight.shape[0] for weight in weights.values())
    entries = sum(weight.numel() for weight in weights.values())
    code_bits = 4 if name == "nf4" else 8
    assert whole["plain"]["bits_per_weight"] == pytest.approx(code_bits + 32 * scales / entries)


def test_checkpoints_in_pieces_and_without_a_head_hold_the_same_weights(workshop, llama, tmp_path, capsys):
    expected = measured(workshop, capsys)["model"]
    llama.save_pretrained(tmp_path / "pieces", max_shard_size="30KB")
    LlamaModel.from_pretrained(workshop.folder / "models/llama").save_pretrained(tmp_path / "bare")
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 2
    assert "layers.0.self_attn.q_proj.weight" in load_file(tmp_path / "bare/model.safetensors")
    for name in ("pieces", "bare"):
        found = measured(workshop, capsys, f"model.source={tmp_path / name}")
        assert found["model"] == expected and not found["notes"], name


def test_weights_are_read_the_way_round_that_a_layer_computes_and_loaded_whole_where_no_file_has_them(tmp_path):
    model = tiny_gpt2()
    model.save_pretrained(tmp_path)
    bpe().save_pretrained(tmp_path)
    settings = {"source": str(tmp_path), "dtype": "float32"}
    weights = Weights(settings, CAUSAL_LM, model, seed=0)
    assert torch.equal(weights.of("transformer.h.0.attn.c_attn"), model.transformer.h[0].attn.c_attn.weight.t())
    assert not weights.is_whole
    drawn = Weights({**settings, "pretrained": False}, CAUSAL_LM, model, seed=0)
    assert drawn.of("transformer.h.0.mlp.c_fc").shape == (64, 32) and drawn.is_whole


def test_a_metric_that_needs_data_chooses_what_a_run_chooses(workshop, capsys):
    overrides = [*workshop.overrides("llama"), "trainer.steps=1", "experiment_name=chosen"]
    assert ended(["quantisation-error", *overrides, "--steps", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["importance"] == "taylor" and starts(found)["rows by taylor"]["own_error"] == 0
    assert ended(["run", *overrides]) == 0
    [record] = Store(workshop.folder / "runs").runs("chosen")
    # The same scores, by all that determines them.
    assert record.result.scores_from_cache


def test_files_and_terminal_are_safe_with_hostile_names(workshop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "=a|`b`<i>[red]"
    shutil.copytree(workshop.folder / "models/llama", folder)
    command = ["quantisation-error", *workshop.overrides("llama"), "method.importance=l2", "--steps", "1"]
    monkeypatch.setattr("sys.argv", ["rowsft", *command])
    assert ended([*command, f"model.source='{folder}'", "--layers", "2", "--worst-first", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "[red]" in printed and printed.count("_proj") >= 2
    markdown = (tmp_path / "out/errors.md").read_text()
    assert "=a\\|\\`b\\`&lt;i>[red]" in markdown.splitlines()[0]
    assert "a|`b`<i>" not in "".join(line for line in markdown.splitlines() if line.startswith(("-", "#", "|")))
    found = json.loads((tmp_path / "out/errors.json").read_text())
    with (tmp_path / "out/layers.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["relative_error"]) for line in lines] == [line["relative_error"] for line in found["layers"]]
    plain = [line["relative_error"] for line in found["layers"] if line["start"] == "plain"]
    assert plain == sorted(plain, reverse=True) and len(plain) == 14
    with (tmp_path / "out/model.csv").open() as file:
        assert [line["start"] for line in csv.DictReader(file)] == [line["start"] for line in found["model"]]


def test_the_budget_is_met_by_rows_and_ranks_alike(workshop, capsys):
    for budget in (["budget.rows=null", "budget.like={method:lora,r:2}"], ["method.rows=4"]):
        whole = starts(measured(workshop, capsys, *budget))
        rows, ranks = whole["rows by l2"]["parameters"], whole["LoftQ, 1 step"]["parameters"]
        assert abs(rows / ranks - 1) < 0.02 and rows > 0
        assert whole["rows by random"]["parameters"] == rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=lora"], "method=lora: the rows come from row-SFT's settings"),
        (["--quantiser", "fp4"], "quantiser=fp4: unknown; use one of nf4, nf4_double, int8"),
        (["--steps", "0"], "steps=0: expected 1 or more"),
        (["--adapter-dtype", "int8"], "adapter_dtype=int8: unknown; use one of float32, bfloat16, float16"),
        (["--svd-iterations", "-1"], "svd_iterations=-1: expected 0 or more"),
        (["method.importance=luck"], "importance=luck: unknown metric"),
        (["trainer.calibration_overlap=0.9", "method.importance=taylor"], "trainer.calibration_overlap=0.9: how many"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(arguments, message, workshop, capsys):
    assert ended(["quantisation-error", *workshop.overrides("llama"), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rowsft: error: {message}")


def test_a_checkpoint_that_is_quantised_already_is_refused(workshop, tmp_path, capsys):
    shutil.copytree(workshop.folder / "models/llama", tmp_path / "packed")
    config = json.loads((tmp_path / "packed/config.json").read_text())
    (tmp_path / "packed/config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    assert ended(["quantisation-error", *workshop.overrides("llama"), f"model.source={tmp_path / 'packed'}"]) == 2
    assert "its weights are quantised already" in capsys.readouterr().err
