"""Configurations that no run could have are refused as a run refuses them, in one line."""

import json

import pytest
from planning import SMALL, planned
from transformers import AlbertConfig, DebertaConfig, T5Config

from rowsft.errors import UserError


def test_an_encoder_decoder_is_refused_as_a_run_refuses_it(tmp_path):
    sizes = {"vocab_size": 99, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    T5Config(**sizes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"encoder-decoder models \(t5\) are not supported"):
        planned(*SMALL, f"model.source={tmp_path}")


@pytest.mark.parametrize("autocast", ["bf16", "fp16"])
def test_autocast_of_a_family_that_computes_in_float32_alone_is_refused_as_a_run_refuses_it(autocast, tmp_path):
    sizes = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    DebertaConfig(**sizes, num_attention_heads=2, max_position_embeddings=32).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"trainer\.autocast={autocast}: models of type deberta compute in float32"):
        planned(*SMALL, f"model.source={tmp_path}", "model.attn_implementation=eager", f"trainer.autocast={autocast}")


def test_a_configuration_without_sizes_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "vocab_size": 99}))
    with pytest.raises(UserError, match=r"does not say num_hidden_layers"):
        planned(*SMALL, f"model.source={tmp_path}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.max_length=0", r"task\.max_length=0: expected a whole number, at least 2"),
        ("task.max_length=null", r"task\.max_length=null: expected a whole number"),
        ("task.max_length=long", r"task\.max_length=long: expected a whole number"),
        ("task.max_length=2.5", r"task\.max_length=2\.5: expected a whole number"),
        ("task.max_length=100000", r"task\.max_length=100000: the model .*512"),
        ("method.channel=up", r"method\.channel=up: unknown; use one of"),
    ],
)
def test_values_that_a_run_refuses_are_refused_alike(override, message):
    with pytest.raises(UserError, match=message):
        planned(*SMALL, "method=row_sft", override)


LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 99}


LLAMA |= {"num_attention_heads": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # The class would fill in those of a Llama of 7 billion parameters.
        ({"intermediate_size": ...}, "does not say intermediate_size"),
        ({"num_attention_heads": ...}, "does not say num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is no multiple of num_key_value_heads=3"),
        ({"hidden_size": -64}, r"(no model of the task's kind|cannot be loaded).*negative dimension"),
        ({"hidden_size": 0}, r"(no model of the task's kind|cannot be loaded)"),
        ({"hidden_size": "big"}, r"(no model of the task's kind|cannot be loaded).*expected int, got str"),
        ({"num_attention_heads": 5}, r"(no model of the task's kind|cannot be loaded).*not a multiple"),
        ({"num_attention_heads": 0}, r"(no model of the task's kind|cannot be loaded)"),
        ({"hidden_act": "nope"}, r"(no model of the task's kind|cannot be loaded)"),
        ({"dtype": "float77"}, r"(no model of the task's kind|cannot be loaded)"),
        ({"model_type": "vit"}, r"(no model of the task's kind|cannot be loaded)"),
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
