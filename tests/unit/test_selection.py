"""Which layers are eligible, held against what PEFT wraps."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import build, causal_batch, tiny_bert, tiny_gpt2, tiny_llama
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from rowsft import RowSFTConfig, attach
from rowsft.errors import UserError
from rowsft.layers.matrix import layer_shape
from rowsft.selection.targets import Targets, eligible_layers, head_names


def wrapped_by_peft(model, **targets):
    wrapped = get_peft_model(model, LoraConfig(r=2, **targets)).base_model.model
    return [name for name, module in wrapped.named_modules() if isinstance(module, BaseTunerLayer)]


@pytest.mark.parametrize(
    ("build", "targets"),
    [
        (tiny_llama, {"target_modules": "all-linear"}),
        (tiny_llama, {"target_modules": ["q_proj", "mlp.down_proj"]}),
        (tiny_llama, {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}),
        (tiny_llama, {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 0}),
        (tiny_llama, {"target_modules": "all-linear", "exclude_modules": ["k_proj", "layers.0.mlp.up_proj"]}),
        (tiny_llama, {"target_modules": "all-linear", "exclude_modules": r".*\.1\..*"}),
        (tiny_llama, {"target_modules": r".*self_attn\.[qk]_proj"}),
        (tiny_llama, {"target_modules": ["lm_head", "o_proj"]}),
        (tiny_gpt2, {"target_modules": "all-linear"}),
        (tiny_gpt2, {"target_modules": ["c_attn"]}),
        (tiny_bert, {"target_modules": ["query", "value"]}),
        (tiny_bert, {"target_modules": ["query", "pooler.dense"]}),
    ],
)
def test_eligible_layers_are_those_that_peft_wraps(build, targets):
    assert list(eligible_layers(build(), Targets(**targets))) == wrapped_by_peft(build(), **targets)


@pytest.mark.parametrize("targets", ["all-linear", ["query", "key", "value", "dense"], r".*"])
def test_bert_without_its_head(targets):
    names = list(eligible_layers(tiny_bert(), Targets(targets)))
    assert len(names) == 12
    assert all(".encoder.layer." in name for name in names)
    assert names == wrapped_by_peft(tiny_bert(), target_modules=names)


def test_a_model_with_an_adapter_is_refused():
    wrapped = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UserError, match="carries a PEFT adapter already"):
        eligible_layers(wrapped, Targets())


def test_layers_to_transform_works_with_all_linear():
    names = list(eligible_layers(tiny_llama(), Targets("all-linear", layers_to_transform=[1])))
    assert len(names) == 7
    assert all(name.startswith("model.layers.1.") for name in names)


def test_head_modules_are_never_eligible():
    names = eligible_layers(
        tiny_bert(), Targets(["intermediate.dense", "query"], head_modules=["bert.encoder.layer.1"])
    )
    assert set(names) == {"bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.attention.self.query"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (Targets(["qq_proj"]), "qq_proj matches no linear layer.*model.layers.0.self_attn.q_proj"),
        (Targets(["q_proj", "embed_tokens"]), "embed_tokens matches no linear layer"),
        (Targets("nothing.*"), "leaves no layer to tune.*model.layers.0.self_attn.q_proj"),
        (Targets("all-linear", layers_to_transform=[7]), r"layers_to_transform=\[7\]\) leaves no layer"),
    ],
)
def test_no_eligible_layer_names_those_that_exist(targets, message):
    with pytest.raises(UserError, match=message):
        eligible_layers(tiny_llama(), targets)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_bert])
def test_shapes_are_what_a_layer_computes(build):
    model = build()
    for layer in eligible_layers(model, Targets()).values():
        d_out, d_in = layer_shape(layer)
        assert layer(torch.zeros(1, d_in)).shape == (1, d_out)


def test_head_names():
    assert head_names(tiny_bert(), ["classifier", "pooler"]) == ["classifier", "bert.pooler"]
    with pytest.raises(UserError, match="head_modules=score: no such module in BertForSequenceClassification"):
        head_names(tiny_bert(), ["score"])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"target_modules": None}, r'target_modules=None: expected names of layers .* set it, e.g. to "all-linear"'),
        ({"target_modules": 7}, "target_modules=7: expected names of layers or one regular expression"),
        ({"target_modules": "*.q_proj"}, r"target_modules=\*\.q_proj must be a regular expression \(nothing to repeat"),
        ({"exclude_modules": "(k_proj"}, r"exclude_modules=\(k_proj must be a regular expression \(missing \)"),
        ({"exclude_modules": 3}, "exclude_modules=3: expected names of layers, one regular expression, or null"),
    ],
)
def test_targets_that_name_nothing_are_refused_in_one_line(targets, message):
    with pytest.raises(UserError, match=message) as caught:
        Targets(**targets)
    assert "\n" not in str(caught.value)


def test_layers_pattern_says_where_the_indices_count():
    targets = {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}
    assert list(eligible_layers(tiny_llama(), Targets(**targets))) == wrapped_by_peft(tiny_llama(), **targets)


class Pooled(nn.Module):
    """Attention as torch has it: its out_proj is a linear layer that nobody calls."""

    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.attention(x, x, x)[0])


def test_layers_that_nobody_calls_are_left_out():
    torch.manual_seed(0)
    assert list(eligible_layers(Pooled(), Targets())) == ["last"]
    mamba = build(
        MambaForCausalLM, MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=1), torch.float32, seed=0
    )
    assert not any(name.endswith("dt_proj") for name in eligible_layers(mamba, Targets()))
    with pytest.raises(UserError, match="out_proj matches no linear layer"):
        eligible_layers(Pooled(), Targets(["out_proj"]))
    with pytest.raises(UserError, match="selects attention.out_proj, whose weight the model reads"):
        get_peft_model(Pooled(), RowSFTConfig(rows=2, target_modules=["out_proj", "last"]))
    alone = get_peft_model(Pooled(), RowSFTConfig(rows=2, target_modules="all-linear"))
    alone(torch.randn(2, 5, 8)).sum().backward()
    adapted = attach(mamba, RowSFTConfig(rows=2, importance="taylor", target_modules="all-linear"), [causal_batch()])
    adapted(**causal_batch()).loss.backward()
    for model in (alone, adapted):
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
