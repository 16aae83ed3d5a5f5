"""What is chosen, against brute force in plain Python: every channel, scope and attention mode, ties and odd means."""

from fractions import Fraction

import pytest
import torch
from tiny import tiny_bert, tiny_gpt2, tiny_llama

from rowsft.errors import UserError
from rowsft.layers.matrix import layer_shape
from rowsft.selection.choose import choose, choose_globally, row_price, unit_groups_for
from rowsft.selection.groups import layer_counts, parameters
from rowsft.selection.targets import Targets, eligible_layers

AXES = ("rows", "columns")


def setting(build, channel="rows", attention="linear", targets="all-linear", **kwargs):
    model = build(**kwargs)
    layers = eligible_layers(model, Targets(targets))
    return model, layers, unit_groups_for(model, layers, channel, attention)


def random_scores(layers, seed=0, levels=None, sign=1):
    """Scores of very different sizes from layer to layer; few `levels` make ties."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: {} for name in layers}
    for index, (name, layer) in enumerate(layers.items()):
        for axis, size in zip(AXES, layer_shape(layer), strict=True):
            drawn = torch.rand(size, generator=generator)
            drawn = drawn if levels is None else (drawn * levels).floor()
            scores[name][axis] = sign * drawn * 4**index if levels is None else sign * drawn
    return scores


def relative(values):
    """Scores over their mean as exact fractions; all 0 where the mean is 0."""
    values = [Fraction(float(value)) for value in values]
    mean = abs(sum(values) / len(values))
    return [value / mean if mean else Fraction(0) for value in values]


def along(scores, axis):
    return {name: of_layer[axis] for name, of_layer in scores.items()}


def ids(chosen, axis):
    return {name: (choice.rows if axis == "rows" else choice.columns).tolist() for name, choice in chosen.items()}


def best(values, count):
    return sorted(sorted(range(len(values)), key=lambda index: (-values[index], index))[:count])


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("channel", ["rows", "columns", "both"])
def test_each_layer_takes_its_largest(channel, k, levels):
    _, layers, unit_groups = setting(tiny_llama, channel)
    scores = random_scores(layers, levels=levels)
    split = {"rows": (k, 0), "columns": (0, k), "both": ((k + 1) // 2, k // 2)}[channel]
    steps = [split[group.axis == "columns"] for group in unit_groups]
    chosen = choose(unit_groups, layers, scores, steps)
    assert list(chosen) == list(layers)
    for axis, count in zip(AXES, split, strict=True):
        assert ids(chosen, axis) == {name: best(scores[name][axis].tolist(), count) for name in layers}
    assert all(part.dtype == torch.int64 for choice in chosen.values() for part in (choice.rows, choice.columns))


def brute_force_order(layers, scores):
    """(layer, id) from the largest relative score down; ties to the lower layer, then the lower index."""
    units = [
        (-value, place, index, name)
        for place, name in enumerate(layers)
        for index, value in enumerate(relative(scores[name].tolist()))
    ]
    return [(name, index) for _, _, index, name in sorted(units)]


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert, tiny_gpt2])
@pytest.mark.parametrize(("levels", "sign"), [(None, 1), (3, 1), (None, -1), (3, -1)])
@pytest.mark.parametrize("channel", ["rows", "columns"])
def test_one_threshold_over_all_layers_keeps_the_total_exactly(build, channel, levels, sign):
    """Negative scores are those of lowest(metric): their mean must not turn the order once more."""
    _, layers, unit_groups = setting(build, channel)
    scores = random_scores(layers, levels=levels, sign=sign)
    for total in (1, 3 * len(layers), 201):
        chosen = choose_globally(unit_groups, layers, scores, total, row_price(unit_groups))
        expected = {name: [] for name in layers}
        for name, index in brute_force_order(layers, along(scores, channel))[:total]:
            expected[name].append(index)
        assert ids(chosen, channel) == {name: sorted(each) for name, each in expected.items()}
        assert sum(map(len, ids(chosen, channel).values())) == total


def test_a_global_lowest_takes_the_smallest_relative_scores():
    _, layers, unit_groups = setting(tiny_llama)
    scores = along(random_scores(layers), "rows")
    turned = {name: {"rows": -each} for name, each in scores.items()}
    chosen = ids(choose_globally(unit_groups, layers, turned, 40, row_price(unit_groups)), "rows")
    taken = [relative(scores[name].tolist())[index] for name, each in chosen.items() for index in each]
    left = [value for n in layers for i, value in enumerate(relative(scores[n].tolist())) if i not in chosen[n]]
    assert len(taken) == 40
    assert max(taken) <= min(left)


def test_a_layer_of_mean_zero_scores_zero():
    _, layers, unit_groups = setting(tiny_llama, targets=["q_proj"])
    first, second = layers
    scores = {first: {"rows": torch.zeros(32)}, second: {"rows": torch.ones(32)}}
    scores[second]["rows"][:4] = 0
    chosen = ids(choose_globally(unit_groups, layers, scores, 30, row_price(unit_groups)), "rows")
    assert chosen == {first: [0, 1], second: list(range(4, 32))}


@pytest.mark.parametrize("limit", [33, 5000, 12345])
@pytest.mark.parametrize("build", [tiny_llama, tiny_bert])
def test_a_global_number_of_parameters_is_met_within_one_row_of_the_threshold(build, limit):
    _, layers, unit_groups = setting(build)
    scores = random_scores(layers)
    chosen = choose_globally(
        unit_groups, layers, scores, limit, lambda steps: parameters(layers, layer_counts(unit_groups, steps), True)
    )
    expected, left = {name: [] for name in layers}, limit
    for name, index in brute_force_order(layers, along(scores, "rows")):
        cost = layer_shape(layers[name])[1] + (layers[name].bias is not None)
        if cost > left:
            break
        expected[name].append(index)
        left -= cost
    assert ids(chosen, "rows") == {name: sorted(each) for name, each in expected.items()}
    assert left < cost


def trained_entries(layers, rows, columns, biases):
    """Parameters counted entry by entry, on a mask of each weight."""
    total = 0
    for name, layer in layers.items():
        mask = torch.zeros(layer_shape(layer), dtype=torch.bool)
        mask[rows[name]] = True
        mask[:, columns[name]] = True
        total += int(mask.sum()) + len(rows[name]) * (biases and layer.bias is not None)
    return total


@pytest.mark.parametrize("train_bias", [True, False])
@pytest.mark.parametrize("limit", [200, 3000, 15000])
def test_global_both_takes_rows_and_columns_in_turn_and_counts_crossings_once(limit, train_bias):
    _, layers, unit_groups = setting(tiny_bert, "both")
    scores = random_scores(layers)
    chosen = choose_globally(
        unit_groups,
        layers,
        scores,
        limit,
        lambda steps: parameters(layers, layer_counts(unit_groups, steps), train_bias),
    )
    orders = {axis: iter(brute_force_order(layers, along(scores, axis))) for axis in AXES}
    taken = {axis: {name: [] for name in layers} for axis in AXES}
    for turn in range(10**6):
        axis = AXES[turn % 2]
        name, index = next(orders[axis])
        taken[axis][name].append(index)
        if trained_entries(layers, taken["rows"], taken["columns"], train_bias) > limit:
            taken[axis][name].pop()
            break
    for axis in AXES:
        assert ids(chosen, axis) == {name: sorted(each) for name, each in taken[axis].items()}


def test_global_both_with_a_total_of_rows_is_exact():
    _, layers, unit_groups = setting(tiny_llama, "both")
    chosen = choose_globally(unit_groups, layers, random_scores(layers), 71, row_price(unit_groups))
    assert sum(len(choice.rows) for choice in chosen.values()) == 36
    assert sum(len(choice.columns) for choice in chosen.values()) == 35


def llama_units(layers, scores, block, kind):
    """Unit -> (score, {layer: rows}, {layer: columns}), by the definition, for 4 heads of 8 and 2 kv heads."""
    prefix = f"model.layers.{block}."
    if kind == "mlp":
        producers = {f"{prefix}mlp.{n}": [[u] for u in range(64)] for n in ("gate_proj", "up_proj")}
        consumers = {f"{prefix}mlp.down_proj": [[u] for u in range(64)]}
    else:
        of_head = {"q_proj": 16, "k_proj": 8, "v_proj": 8}
        producers = {
            f"{prefix}self_attn.{name}": [list(range(width * u, width * (u + 1))) for u in range(2)]
            for name, width in of_head.items()
        }
        consumers = {f"{prefix}self_attn.o_proj": [list(range(16 * u, 16 * (u + 1))) for u in range(2)]}
    units = []
    for u in range(64 if kind == "mlp" else 2):
        shares = []
        for axis, members in (("rows", producers), ("columns", consumers)):
            for name, of_unit in members.items():
                scaled = relative(scores[name][axis].tolist())
                shares.append(sum(scaled[i] for i in of_unit[u]) / len(of_unit[u]))
        rows = {name: of_unit[u] for name, of_unit in producers.items()}
        units.append((sum(shares) / len(shares), rows, {name: of_unit[u] for name, of_unit in consumers.items()}))
    return units


GROUPS = [(block, kind) for block in range(2) for kind in ("attention", "mlp")]


def gathered(layers, units):
    rows, columns = ({name: [] for name in layers} for _ in AXES)
    for _, of_rows, of_columns in units:
        for found, each in ((rows, of_rows), (columns, of_columns)):
            for name, more in each.items():
                found[name] = sorted(found[name] + more)
    return rows, columns


@pytest.mark.parametrize("sign", [1, -1])
def test_coupled_units_by_definition(sign):
    _, layers, unit_groups = setting(tiny_llama, "neurons")
    scores = random_scores(layers, sign=sign)
    chosen = choose(unit_groups, layers, scores, [1, 5, 2, 0])
    expected = []
    for (block, kind), count, group in zip(GROUPS, [1, 5, 2, 0], unit_groups, strict=True):
        units = llama_units(layers, scores, block, kind)
        got = group.unit_scores(scores, compared=True)
        torch.testing.assert_close(got, torch.tensor([float(unit[0]) for unit in units], dtype=torch.float64))
        expected += sorted(units, key=lambda unit: -unit[0])[:count]
    assert (ids(chosen, "rows"), ids(chosen, "columns")) == gathered(layers, expected)


@pytest.mark.parametrize("total", [4, 60])
def test_coupled_units_by_one_threshold(total):
    _, layers, unit_groups = setting(tiny_llama, "neurons")
    scores = random_scores(layers)
    chosen = choose_globally(unit_groups, layers, scores, total, row_price(unit_groups))
    units = [unit for block, kind in GROUPS for unit in llama_units(layers, scores, block, kind)]
    expected = sorted(units, key=lambda unit: -unit[0])[:total]
    assert (ids(chosen, "rows"), ids(chosen, "columns")) == gathered(layers, expected)


def test_hidden_units_use_what_no_whole_head_fits_in():
    _, layers, unit_groups = setting(tiny_llama, "neurons")
    scores = random_scores(layers)
    # One head costs (16 + 8 + 8) * 32 + 16 * 32 = 1536, one hidden unit 3 * 32 = 96. Heads come first here.
    for group in unit_groups:
        if group.noun == "heads":
            for member in group.members:
                scores[member.layer][member.axis][member.ids[0]] *= 1000

    def price(steps):
        return parameters(layers, layer_counts(unit_groups, steps), True)

    chosen = choose_globally(unit_groups, layers, scores, 1536 + 1000, price)
    assert sorted(len(chosen[f"model.layers.{block}.self_attn.v_proj"].rows) for block in range(2)) == [0, 8]
    assert sum(len(chosen[f"model.layers.{block}.mlp.up_proj"].rows) for block in range(2)) == 1000 // 96


def grouped_reference(scores, block, per_head):
    """Row ids of q, k and v of a tiny Llama block that share the best offsets of each kv head."""
    q, k, v = (relative(scores[f"model.layers.{block}.self_attn.{n}_proj"]["rows"].tolist()) for n in "qkv")
    rows = {"q": [], "k": [], "v": []}
    for head in range(2):
        mean = []
        for offset in range(8):
            served = [q[8 * query + offset] for query in (2 * head, 2 * head + 1)]
            mean.append((sum(served) / 2 + k[8 * head + offset] + v[8 * head + offset]) / 3)
        for offset in best(mean, per_head):
            rows["k"].append(8 * head + offset)
            rows["v"].append(8 * head + offset)
            rows["q"] += [8 * query + offset for query in (2 * head, 2 * head + 1)]
    return {f"model.layers.{block}.self_attn.{n}_proj": sorted(each) for n, each in rows.items()}


def test_grouped_projections_share_the_best_offsets_equally_many_a_head():
    _, layers, unit_groups = setting(tiny_llama, "rows", "grouped")
    scores = random_scores(layers)
    steps = [3 if group.parts == 2 else 4 for group in unit_groups]
    chosen = ids(choose(unit_groups, layers, scores, steps), "rows")
    for block in range(2):
        shared = grouped_reference(scores, block, 3)
        assert {name: chosen[name] for name in shared} == shared
    plain = [name for name in layers if not name.endswith(("q_proj", "k_proj", "v_proj"))]
    assert {name: chosen[name] for name in plain} == {n: best(scores[n]["rows"].tolist(), 4) for n in plain}


def test_grouped_columns_are_the_same_in_all_three():
    _, layers, unit_groups = setting(tiny_llama, "columns", "grouped")
    scores = random_scores(layers)
    chosen = ids(choose(unit_groups, layers, scores, [5] * len(unit_groups)), "columns")
    for block in range(2):
        names = [f"model.layers.{block}.self_attn.{n}_proj" for n in "qkv"]
        parts = [relative(scores[name]["columns"].tolist()) for name in names]
        expected = best([sum(each) for each in zip(*parts, strict=True)], 5)
        assert [chosen[name] for name in names] == [expected] * 3


def test_grouped_rows_of_a_fused_projection_weigh_its_blocks_alike():
    _, layers, unit_groups = setting(tiny_gpt2, "rows", "grouped", ["c_attn"])
    scores = random_scores(layers)
    chosen = ids(choose(unit_groups, layers, scores, [2, 2]), "rows")
    for name in layers:
        blocks = [relative(scores[name]["rows"][start : start + 32].tolist()) for start in (0, 32, 64)]
        means = [sum(each) for each in zip(*blocks, strict=True)]
        offsets = [8 * head + i for head in range(4) for i in best(means[8 * head : 8 * head + 8], 2)]
        assert chosen[name] == [start + offset for start in (0, 32, 64) for offset in offsets]


def test_grouped_and_global_keep_heads_equal_and_the_total_exact():
    _, layers, unit_groups = setting(tiny_llama, "rows", "grouped")
    chosen = ids(choose_globally(unit_groups, layers, random_scores(layers), 150, row_price(unit_groups)), "rows")
    assert sum(map(len, chosen.values())) == 150
    for block in range(2):
        q, k, v = (chosen[f"model.layers.{block}.self_attn.{n}_proj"] for n in "qkv")
        assert k == v
        assert len(q) == 2 * len(k)
        assert len({sum(row // 8 == head for row in q) for head in range(4)}) == 1


def test_columns_beside_all_rows_of_a_layer_are_left_out():
    _, layers, unit_groups = setting(tiny_llama, "both", targets=["q_proj"])
    chosen = choose(unit_groups, layers, random_scores(layers), [32, 31, 3, 2])
    assert [(len(choice.rows), len(choice.columns)) for choice in chosen.values()] == [(32, 0), (3, 2)]


def test_what_cannot_be_chosen_is_refused():
    _, layers, unit_groups = setting(tiny_llama, targets=["k_proj"])
    scores = random_scores(layers)
    with pytest.raises(UserError, match=r"rows=17 for model.layers.0.self_attn.k_proj: expected 0 to 16"):
        choose(unit_groups, layers, scores, [17, 1])
    with pytest.raises(UserError, match=r"scope=global: a limit of 31 allows nothing, .*k_proj costs 32"):
        choose_globally(unit_groups, layers, scores, 31, lambda steps: 32 * sum(steps))
