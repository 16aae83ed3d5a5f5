"""Single entries as a method: which are chosen, by brute force; and what every method is held to."""

from copy import deepcopy
from functools import cache

import pytest
import torch
from method_contract import (
    BUDGET,
    CASES,
    adamw,
    check_counts,
    check_merge,
    check_only_the_trainable_moves,
    check_saves_and_loads,
    check_step_zero,
    prepared,
    train,
)
from omegaconf import DictConfig, OmegaConf
from planning import planned
from scoring import causal_batches, mean_gradient, same, snapshot, weights
from tiny import causal_batch, tiny_gpt2, tiny_llama
from torch import nn

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.errors import UserError
from rowsft.importance import Calibration, layer_generator
from rowsft.layers.matrix import layer_shape
from rowsft.method_info import info_of
from rowsft.methods.base import method_class, method_of, selected
from rowsft.runner.checkpoints import Changes
from rowsft.selection.budget import Budget
from rowsft.selection.entries import chosen_entries
from rowsft.selection.targets import Targets, eligible_layers

# PEFT's SHiRA knows no Conv1D.
FAMILIES = ["llama", "bert"]
GRID = [(choice, per) for choice in ("random", "magnitude", "lift", "gradient") for per in ("matrix", "row")]
SOURCES = {
    "neuroada": ("magnitude", "row"),
    "gps": ("gradient", "row"),
    "sparta": ("random", "matrix"),
    "lift": ("lift", "matrix"),
    "rosa_mask": ("gradient", "matrix"),
}


@cache
def composed(name: str) -> DictConfig:
    return compose([f"method={name}"])


def sizes_of(choice: str, model: nn.Module, batches: list[dict], seed: int = 0) -> dict[str, torch.Tensor]:
    """What each layer's entries are ranked by, by plain means."""
    if choice == "gradient":
        return {name: gradient.abs() for name, gradient in mean_gradient(model, batches).items()}
    matrices = weights(model)
    if choice == "lift":
        for name, matrix in matrices.items():
            left, values, right = torch.linalg.svd(matrix)
            matrices[name] = left[:, :16] @ torch.diag(values[:16]) @ right[:16]
    if choice == "random":
        return {
            name: torch.rand(matrix.shape, generator=layer_generator(seed, f"{name} entries"))
            for name, matrix in matrices.items()
        }
    return {name: matrix.abs() for name, matrix in matrices.items()}


def best(sizes: torch.Tensor, count: int, per: str) -> list[int]:
    """Flat ids by sorting Python lists: the largest first, the lower id of equals."""
    rows = sizes.tolist()
    width = len(rows[0])
    ranked = [sorted(range(width), key=lambda column, row=row: (-row[column], column)) for row in rows]
    if per == "row":
        each, more = divmod(count, len(rows))
        ids = [width * row + column for row, columns in enumerate(ranked) for column in columns[:each]]
        following = (
            [(-rows[row][columns[each]], row, columns[each]) for row, columns in enumerate(ranked)] if more else []
        )
        return sorted(ids + [width * row + column for _, row, column in sorted(following)[:more]])
    flat = sizes.flatten().tolist()
    return sorted(sorted(range(len(flat)), key=lambda entry: (-flat[entry], entry))[:count])


@pytest.mark.parametrize(("choice", "per"), GRID)
def test_the_entries_with_the_largest_sizes_are_chosen(choice, per):
    model, batches = tiny_llama(torch.float64), causal_batches()
    method = method_class("entries")(choice=choice, per=per, rank=16, r=2)
    resolved = selected(method, model, method.solve(Budget(), model, Targets()), batches)
    for name, sizes in sizes_of(choice, model, batches).items():
        count = 2 * sum(sizes.shape)
        assert resolved.entries[name].tolist() == best(sizes, count, per)
        if per == "row":
            counts = torch.bincount(resolved.entries[name] // sizes.shape[1], minlength=len(sizes))
            assert counts.max() - counts.min() <= 1
    assert resolved.achieved == sum(map(len, resolved.entries.values()))


@pytest.mark.parametrize("per", ["matrix", "row"])
@pytest.mark.parametrize("count", [1, 7, 40, 59, 60])
def test_ties_go_to_the_lower_entry(per, count):
    sizes = torch.tensor([[0.0, 1, 1, 2, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 3]]).repeat(4, 1)[:10]
    assert chosen_entries(sizes, count, per, "layer").tolist() == best(sizes, count, per)


@pytest.mark.parametrize("case", FAMILIES)
def test_it_starts_where_the_base_is_and_trains_what_is_counted(case):
    build, _, targets = CASES[case]
    like_lora = Budget(like={"method": "lora", "r": 2})
    expected = sum(2 * sum(layer_shape(layer)) for layer in eligible_layers(build(), targets).values())
    check_step_zero(case, "entries", choice="gradient", per="row")
    check_counts(case, "entries", expected, budget=like_lora)
    check_only_the_trainable_moves(case, "entries")


@pytest.mark.parametrize("case", FAMILIES)
def test_it_saves_loads_and_merges(case, tmp_path):
    check_saves_and_loads(case, "entries", tmp_path, choice="gradient")
    check_merge(case, "entries", per="row")


@pytest.mark.parametrize(("choice", "per"), [("magnitude", "row"), ("gradient", "matrix")])
def test_the_curve_is_that_of_the_whole_model_with_every_other_gradient_zero(choice, per):
    model, batch = tiny_llama(), causal_batch()
    dense, method = deepcopy(model), method_class("entries")(choice=choice, per=per)
    resolved = selected(method, model, method.solve(BUDGET, model, Targets()), [batch])
    dense.requires_grad_(False)
    for name, ids in resolved.entries.items():
        weight = dense.get_submodule(name).weight
        mask = torch.zeros(weight.numel()).index_fill(0, ids, 1).view_as(weight)
        weight.requires_grad_(True).register_hook(lambda gradient, mask=mask: gradient * mask)
    losses, expected = train(method.attach(model, resolved), batch, 6), train(dense, batch, 6, adamw(dense))
    assert expected[-1] < expected[0]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_choosing_leaves_the_model_as_it_was():
    model = tiny_llama().train()
    before = snapshot(model)
    for choice in ("gradient", "lift", "random"):
        method = method_class("entries")(choice=choice)
        selected(method, model, method.solve(BUDGET, model, Targets()), causal_batches())
    assert same(before, snapshot(model))


class Kept(dict):
    """A score cache in memory."""

    def put(self, key, scores):
        self[str(key)] = scores

    def get(self, key):
        return dict.get(self, str(key))


def test_a_choice_by_gradients_is_kept():
    model, cache_ = tiny_llama(), Kept()

    def choose(per):
        calibration = Calibration(causal_batches(), cache_, {"model": "tiny"})
        method = method_class("entries")(choice="gradient", per=per)
        resolved = method.select(model, method.solve(BUDGET, model, Targets()), calibration)
        return resolved.entries, calibration.was_read

    first, read = choose("row")
    again, read_again = choose("row")
    other, read_other = choose("matrix")
    assert (read, read_again, read_other) == (False, True, False)
    assert list(first) == list(again) and all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_run_goes_on_with_its_own_entries_alone():
    digests = [Changes(prepared("llama", "entries", seed=seed, choice="random")[2]).digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", SOURCES)
def test_a_preset_is_entries_with_the_choice_of_its_source(name):
    preset, plain = composed(name).method, composed("entries").method
    assert {key for key in plain if preset[key] != plain[key]} <= {"name", "choice", "per"}
    assert (preset.choice, preset.per) == SOURCES[name]
    info = info_of(method_of(preset))
    assert (info.name, info.title, info.sizes, info.budgeted) == (name, name, ("r",), True)


@pytest.mark.parametrize("name", ["entries", *SOURCES])
def test_only_a_choice_by_gradients_depends_on_data(name):
    changed = [{"trainer": {"calibration_batches": n}} for n in (5, 6)]
    ids = {run_spec(OmegaConf.merge(composed(name), change)).run_id for change in changed}
    assert len(ids) == (2 if SOURCES.get(name, ("magnitude",))[0] == "gradient" else 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choice": "taylor"}, "method.choice=taylor: unknown; use one of random, magnitude, lift, gradient"),
        ({"per": "column"}, "method.per=column: unknown; use one of matrix, row"),
        ({"rank": 0}, "method=entries: rank=0: expected a whole number above 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        method_class("entries")(**settings)


def test_what_it_cannot_do_is_said():
    method = method_class("entries")(choice="gradient")
    with pytest.raises(UserError, match="knows nn.Linear only"):
        method.solve(BUDGET, tiny_gpt2(), Targets())
    model = tiny_llama()
    resolved = method.solve(BUDGET, model, Targets())
    with pytest.raises(UserError, match="method.choice=gradient needs training batches and calibration is empty"):
        method.select(model, resolved, [])
    packed = tiny_llama()
    packed.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match=r"gradient: layer model\.layers\.0\.mlp\.up_proj holds torch.uint8"):
        method.select(packed, resolved, [causal_batch()])
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight[3, 4] = torch.nan
    with pytest.raises(UserError, match=r"layer model\.layers\.1\.mlp\.up_proj has entries that are not finite"):
        method_class("entries")().select(model, resolved, [])
    with pytest.raises(UserError, match="method=entries with model=minilm cannot be planned: it needs values"):
        planned("method=entries", "model=minilm", "task=sentiment", "trainer.device=cpu", "task.max_length=8")
