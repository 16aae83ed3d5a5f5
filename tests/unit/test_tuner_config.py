"""The configuration: sizes, targets, validation, and what is written down."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from rows import family, layer_ids, logits, out_rows, random_rows, row_layers, shake
from tiny import causal_batch, tiny_bert, tiny_llama

from rowsft import RowSFTConfig, attach
from rowsft.errors import UserError
from rowsft.tuner import RowSFTLayer

Q = "model.layers.0.self_attn.q_proj"


def sizes(model):
    return {m.layer_name: len(m.row_sft_ids["default"]) for m in model.modules() if isinstance(m, RowSFTLayer)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "rows=0"),
        ({"rows": 2.5}, "rows=2.5"),
        ({"rows": True}, "rows=True"),
        ({"ratio": 0}, "ratio=0"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"rows": 4, "ratio": 0.1}, "rows=4 and ratio=0.1 are both set"),
        ({"rows_pattern": {"a": -1}}, r"rows_pattern\['a'\]=-1"),
        (
            {"columns_pattern": {"a": 1.5}, "channel": "columns"},
            r"columns_pattern\['a'\]=1.5 must be a whole number of columns",
        ),
        ({"ratio": True}, "ratio=True"),
        ({"rows": 4, "train_bias": "yes"}, "train_bias='yes' must be True or False"),
        ({"rows": 4, "seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"rows": 4, "seed": None}, "seed=None must be a whole number"),
        (
            {"column_ids": {"a": [1]}},
            "column_ids is set, but channel='rows' trains no columns; .*: columns, both",
        ),
        ({"rows_pattern": {"a": 1}, "channel": "columns"}, "rows_pattern is set, but channel='columns' trains no rows"),
        (
            {"rows": 4, "channel": "diagonal"},
            "channel='diagonal' is not known; choose from: rows, columns",
        ),
        ({"rows": 4, "scope": "block"}, "scope='block'"),
        ({"rows_pattern": ["a"]}, r"rows_pattern=\['a'\] must be a mapping"),
        ({"row_ids": [1, 2]}, r"row_ids=\[1, 2\] must be a mapping"),
        ({"rows": 4, "target_modules": 3}, "target_modules=3 must be a list of names"),
        ({"rows": 4, "exclude_modules": [3]}, r"exclude_modules=\[3\] must be a list of names"),
        ({"rows": 4, "modules_to_save": "score"}, "modules_to_save='score' must be a list of names"),
        ({"rows": 4, "layers_to_transform": "0"}, "layers_to_transform='0' must be indices"),
        ({"rows": 4, "importance": None}, "importance=None must be the name of a metric"),
        ({"rows": 4, "attention": "none"}, "attention='none'"),
        ({"rows": 4, "dropout": 1.0}, "dropout=1.0"),
        ({"rows": 4, "target_modules": ".*_proj", "layers_to_transform": [0]}, "layers_to_transform"),
        ({"rows": 4, "target_modules": ["a"], "layers_pattern": "h"}, "layers_pattern"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        RowSFTConfig(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no size is set"),
        (
            {"rows": 33},
            r"rows=33 exceeds layer model.layers.0.self_attn.q_proj \(32 rows\); lower rows or exclude it",
        ),
        ({"rows": 2, "rows_pattern": {"layers.0.self_attn.q_proj": 3}}, "rows_pattern names layers.0"),
        ({"rows_pattern": {"model.layers.0.self_attn.q_proj": 0}}, "nothing to train"),
        ({"row_ids": {"model.layers.9.self_attn.q_proj": [1]}}, "row_ids names model.layers.9"),
        ({"row_ids": {"model.layers.0.self_attn.q_proj": [32]}}, "rows 0 to 31"),
        ({"row_ids": {"model.layers.0.self_attn.q_proj": [3, 3]}}, "twice"),
        ({"row_ids": {Q: [1.7, 2.2]}}, "row_ids of layer .*q_proj are float32 values; give the rows' ids"),
        ({"row_ids": {Q: torch.tensor([True, False])}}, "row_ids of layer .*q_proj are bool values"),
        ({"channel": "columns", "column_ids": {Q: [0.5]}}, "column_ids of layer .*q_proj are float32 values"),
        ({"rows": 2, "row_ids": {"model.layers.0.self_attn.q_proj": [3]}}, "has 1 ids .* set to 2 rows"),
        ({"channel": "columns", "rows": 33}, r"rows=33 exceeds layer model.layers.0.self_attn.q_proj \(32 columns\)"),
        ({"channel": "both", "rows": 64}, r"rows=64 exceeds layer .*q_proj \(63 rows and columns\)"),
        (
            {"channel": "both", "rows_pattern": {Q: 32}, "columns_pattern": {Q: 1}, "row_ids": {Q: range(32)}},
            "rows=32 are all rows of layer .*q_proj, so its columns=1 would have no entry",
        ),
        ({"channel": "columns", "column_ids": {"model.layers.0.self_attn.q_proj": [32]}}, "columns 0 to 31"),
        ({"channel": "columns", "column_ids": {"model.layers.0.self_attn.q_proj": [3, 3]}}, "name a column twice"),
        ({"channel": "columns", "column_ids": {"q_proj": [3]}}, "column_ids names q_proj"),
        (
            {"channel": "both", "rows": 4, "row_ids": {"model.layers.0.self_attn.q_proj": [3, 1]}},
            "column_ids has 0 ids",
        ),
        ({"channel": "neurons", "rows": 4}, "selects .*q_proj without .*k_proj"),
        ({"rows": 2, "importance": "taylor"}, r"rowsft\.attach"),
        ({"rows": 2, "importance": "no_such_metric"}, "no_such_metric"),
        ({"rows": 2, "attention": "grouped"}, "selects .*q_proj without .*k_proj"),
        ({"rows": 2, "target_modules": ["embed_tokens"]}, "embed_tokens, a Embedding"),
    ],
)
def test_bad_settings_leave_the_model_as_it_was(settings, message):
    model = tiny_llama()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(UserError, match=message):
        get_peft_model(model, RowSFTConfig(**{"target_modules": ["q_proj"], **settings}))
    assert [name for name, _ in model.named_modules()] == names


def test_rows_ratio_and_pattern():
    targets = ["q_proj", "k_proj", "gate_proj"]  # 32, 16 and 64 rows
    assert set(sizes(get_peft_model(tiny_llama(), RowSFTConfig(rows=5, target_modules=targets))).values()) == {5}
    tuned = get_peft_model(tiny_llama(), RowSFTConfig(ratio=0.1, target_modules=targets))
    assert [sizes(tuned)[f"model.layers.0.{n}"] for n in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")] == [
        3,
        2,
        6,
    ]
    tuned = get_peft_model(tiny_llama(), RowSFTConfig(ratio=0.001, target_modules=targets))
    assert set(sizes(tuned).values()) == {1}
    tuned = get_peft_model(tiny_llama(), RowSFTConfig(ratio=1.0, target_modules=targets))
    assert sizes(tuned)["model.layers.1.mlp.gate_proj"] == 64
    pattern = {"model.layers.0.self_attn.q_proj": 4, "model.layers.1.self_attn.k_proj": 1}
    tuned = get_peft_model(tiny_llama(), RowSFTConfig(rows_pattern=pattern, target_modules=targets))
    assert sizes(tuned) == pattern
    assert tuned.get_nb_trainable_parameters()[0] == 5 * 32


def test_targets_in_pefts_own_terms():
    every = RowSFTConfig(rows=1, target_modules="all-linear", exclude_modules=["pooler.dense"], task_type="SEQ_CLS")
    assert len(sizes(get_peft_model(tiny_bert(), every))) == 12
    regex = RowSFTConfig(rows=1, target_modules=r".*layers\.1\.mlp\.(up|down)_proj")
    assert sizes(get_peft_model(tiny_llama(), regex)).keys() == {
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
    }
    some = RowSFTConfig(rows=1, target_modules=["q_proj"], layers_to_transform=[1])
    assert sizes(get_peft_model(tiny_llama(), some)).keys() == {"model.layers.1.self_attn.q_proj"}
    default = get_peft_model(tiny_llama(), RowSFTConfig(rows=1))
    assert {name.rpartition(".")[2] for name in sizes(default)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("layers", [1, [0, 2], [2]])
@pytest.mark.parametrize("pattern", [None, "layers", ["h", "layers"]])
def test_all_linear_layers_of_some_blocks(layers, pattern):
    config = RowSFTConfig(rows=1, target_modules="all-linear", layers_to_transform=layers, layers_pattern=pattern)
    tuned = get_peft_model(tiny_llama(num_hidden_layers=3), config)
    # LoRA's own choice of the same blocks, which it takes by the names of layers only.
    names = sorted({name.rpartition(".")[2] for name in sizes(tuned)})
    other = LoraConfig(r=1, target_modules=names, layers_to_transform=layers, layers_pattern=pattern)
    lora = get_peft_model(tiny_llama(num_hidden_layers=3), other)
    assert sizes(tuned).keys() == {
        name for name, module in lora.base_model.model.named_modules() if isinstance(module, LoraLayer)
    }
    assert len(names) == 7


def test_blocks_that_the_model_lacks_are_named():
    config = RowSFTConfig(rows=1, target_modules="all-linear", layers_to_transform=[7])
    with pytest.raises(UserError, match=r"layers_to_transform=\[7\] .* leaves no linear layer of this model"):
        get_peft_model(tiny_llama(), config)


@pytest.mark.parametrize("family_name", ["llama", "gpt2"])
@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_data_free_metrics_choose_the_largest_rows(metric, family_name):
    model, _, targets = family(family_name)
    tuned = get_peft_model(model, RowSFTConfig(rows=4, importance=metric, target_modules=targets))
    checked = 0
    for module in tuned.modules():
        if isinstance(module, RowSFTLayer):
            weight = module.get_base_layer().weight.detach()
            weight = weight.t() if family_name == "gpt2" else weight
            norms = weight.abs().sum(1) if metric == "l1" else weight.square().sum(1)
            assert set(module.row_sft_ids["default"].tolist()) == set(norms.topk(4).indices.tolist())
            checked += 1
    assert checked == len(random_rows(family(family_name)[0], targets))


@pytest.mark.parametrize("family_name", ["llama", "gpt2"])
@pytest.mark.parametrize(("channel", "rows", "columns"), [("columns", 0, 5), ("both", 3, 2)])
def test_data_free_metrics_choose_the_largest_columns_too(channel, rows, columns, family_name):
    model, _, targets = family(family_name)
    tuned = get_peft_model(model, RowSFTConfig(rows=5, channel=channel, importance="l1", target_modules=targets))
    for layer in row_layers(tuned).values():
        weight = out_rows(layer.get_base_layer()).detach().abs()
        chosen_rows, chosen_columns = layer_ids(layer)
        assert set(chosen_rows) == set(weight.sum(1).topk(rows).indices.tolist())
        assert set(chosen_columns) == set(weight.sum(0).topk(columns).indices.tolist())


def test_sizes_of_the_channels():
    def sizes(**settings):
        return RowSFTConfig(**settings).sizes_of("layer", 40, 20)

    assert sizes(rows=5) == (5, 0)
    assert sizes(rows=5, channel="columns") == (0, 5)
    assert sizes(rows=5, channel="both") == (3, 2)
    assert sizes(rows=1, channel="both") == (1, 0)
    assert sizes(ratio=0.1) == (4, 0)
    assert sizes(ratio=0.1, channel="columns") == (0, 2)
    assert sizes(ratio=0.1, channel="both") == (2, 1)
    assert sizes(rows=5, channel="both", columns_pattern={"layer": 7}) == (3, 7)
    assert sizes(rows=5, channel="neurons", rows_pattern={"layer": 2}) == (2, 0)


def test_random_rows_and_columns_are_drawn_apart():
    config = RowSFTConfig(rows=16, channel="both", importance="random", target_modules=["q_proj"])
    tuned = get_peft_model(tiny_llama(), config)
    assert all(rows != columns for rows, columns in map(layer_ids, row_layers(tuned).values()))


def test_a_layer_carries_no_empty_tensors():
    for channel, kinds in {"rows": {"delta", "bias"}, "columns": {"column_delta"}}.items():
        tuned = get_peft_model(tiny_bert(), RowSFTConfig(rows=2, channel=channel, target_modules=["query"]))
        names = {name.partition("row_sft_")[2] for name, _ in tuned.named_parameters() if "row_sft_" in name}
        assert names == {f"{kind}.default" for kind in kinds}
        assert all(tensor.numel() for tensor in tuned.state_dict().values())


def test_random_rows_follow_the_seed_and_leave_the_global_stream_alone():
    def chosen(seed):
        config = RowSFTConfig(rows=6, importance="random", seed=seed, target_modules=["q_proj"])
        tuned = get_peft_model(tiny_llama(), config)
        return [m.row_sft_ids["default"].tolist() for m in tuned.modules() if isinstance(m, RowSFTLayer)]

    torch.manual_seed(0)
    first = chosen(1)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)
    assert chosen(1) == first
    assert chosen(2) != first
    assert first[0] != first[1]


def test_row_ids_are_never_written_down(tmp_path):
    ids = {"model.layers.0.self_attn.q_proj": torch.tensor([3, 1])}
    config = RowSFTConfig(target_modules=["v_proj", "q_proj"], row_ids=ids, rows=2)
    assert "row_ids" not in config.to_dict()
    assert config.row_ids is ids
    assert json.loads(json.dumps(config.to_dict()))["target_modules"] == ["q_proj", "v_proj"]
    assert RowSFTConfig(**config.to_dict()) == config
    assert torch.equal(copy.deepcopy(config).row_ids["model.layers.0.self_attn.q_proj"], torch.tensor([3, 1]))
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "row_ids" not in written
    assert written["peft_type"] == "ROW_SFT"
    assert PeftConfig.from_pretrained(tmp_path).row_ids is None


@pytest.mark.parametrize(
    "settings",
    [
        {"scope": "global"},
        {"attention": "grouped"},
        {"attention": "skip"},
        {"channel": "neurons"},
        {"channel": "both"},
        {"channel": "columns", "scope": "global"},
    ],
)
def test_peft_alone_chooses_as_attach_does_where_no_data_are_needed(settings, tmp_path):
    config = RowSFTConfig(rows=2, importance="l2", target_modules="all-linear", **settings)
    models = [get_peft_model(tiny_llama(), copy.copy(config)), attach(tiny_llama(), copy.copy(config))]
    ids = [{name: t for name, t in model.state_dict().items() if name.endswith("ids.default")} for model in models]
    assert ids[0] and ids[0].keys() == ids[1].keys()
    assert all(torch.equal(ids[0][name], ids[1][name]) for name in ids[0])
    shake(models[0])
    models[0].save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert torch.equal(logits(loaded, causal_batch()), logits(models[0], causal_batch()))


def test_a_second_adapter_is_chosen_on_the_base_and_not_on_the_first_ones_rows():
    model = get_peft_model(tiny_llama(), RowSFTConfig(rows=2, importance="l2", target_modules=["q_proj"]))
    alone = {name: t.clone() for name, t in model.state_dict().items() if name.endswith("ids.default")}
    shake(model, scale=100.0)
    with torch.no_grad():
        model(**causal_batch())
    model.add_adapter("other", RowSFTConfig(rows=2, importance="l2", target_modules=["q_proj"]))
    for name, ids in alone.items():
        assert torch.equal(model.state_dict()[name.replace("default", "other")], ids)
