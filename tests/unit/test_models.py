"""Loading: local folders, fresh heads, refusals; and that every conf/model file fits its architecture."""

import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from task_tools import bpe, words
from tiny import tiny_bert, tiny_llama
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaV2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
)

from rowsft import config_folders
from rowsft.config.compose import compose
from rowsft.errors import UserError
from rowsft.models.loading import head_modules, load
from rowsft.tasks.heads import CAUSAL_LM, SEQUENCE_CLASSIFICATION, label_settings


def config(folder, **changes):
    base = {"name": "tiny", "source": str(folder), "revision": None, "dtype": "float32", "attn_implementation": "sdpa"}
    return OmegaConf.create({**base, "head_modules": ["pooler", "classifier", "score"], **changes})


@pytest.fixture
def encoder(tmp_path):
    """A saved tiny BERT without a classification head, with its tokenizer."""
    model = tiny_bert()
    BertModel.from_pretrained(None, config=model.config, state_dict=model.bert.state_dict()).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def llama(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    bpe().save_pretrained(tmp_path)
    return tmp_path


def test_a_fresh_head_depends_on_the_seed_alone_and_the_random_stream_goes_on(encoder):
    torch.manual_seed(11)
    first = load(config(encoder), SEQUENCE_CLASSIFICATION, label_settings(2), seed=5)
    after = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(after, torch.rand(3))
    torch.manual_seed(12)
    again = load(config(encoder), SEQUENCE_CLASSIFICATION, label_settings(2), seed=5)
    other = load(config(encoder), SEQUENCE_CLASSIFICATION, label_settings(2), seed=6)
    head = first.model.classifier.weight
    assert head.std() > 0 and torch.equal(head, again.model.classifier.weight)
    assert not torch.equal(head, other.model.classifier.weight)
    for name, weight in first.model.bert.state_dict().items():
        assert torch.equal(weight, tiny_bert().bert.state_dict()[name]), name
    assert first.facts["new_weights"] == ["classifier.bias", "classifier.weight"]
    assert first.model.config.problem_type == "single_label_classification" and not first.model.training


def test_a_causal_model_is_loaded_whole_and_its_logits_are_the_saved_ones(llama):
    loaded = load(config(llama), CAUSAL_LM)
    ids = torch.arange(3, 12).unsqueeze(0)
    assert torch.equal(loaded.model(ids).logits, tiny_llama()(ids).logits)
    assert loaded.facts["new_weights"] == [] and loaded.facts["dtype"] == "float32"
    assert loaded.facts["parameters"] == sum(p.numel() for p in tiny_llama().parameters())
    assert loaded.facts["architecture"] == "LlamaForCausalLM" and loaded.facts["revision"] == loaded.revision


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig, Gemma3TextConfig])
def test_a_model_that_sees_what_follows_is_no_causal_one(kind, tmp_path):
    from rowsft.models.blueprint import blueprint

    sizes = {"vocab_size": 128, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    own = {"use_bidirectional_attention": True, "head_dim": 8} if kind is Gemma3TextConfig else {}
    kind(**sizes, num_attention_heads=2, num_key_value_heads=1, **own).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    drawn = config(tmp_path, pretrained=False)
    for make in (load, blueprint):
        with pytest.raises(UserError, match=r"reads a text in both directions.*; choose a causal language model"):
            make(drawn, CAUSAL_LM)
    assert load(drawn, SEQUENCE_CLASSIFICATION, label_settings(2)).facts["new_weights"] == ["all"]
    causal = {"use_bidirectional_attention": False} if own else {"is_decoder": True}
    kind(**sizes, num_attention_heads=2, num_key_value_heads=1, **{**own, **causal}).save_pretrained(tmp_path)
    model = load(drawn, CAUSAL_LM).model
    ids = torch.arange(3, 12).unsqueeze(0)
    other = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    with torch.no_grad():
        assert torch.equal(model(ids).logits[:, :-1], model(other).logits[:, :-1])


def test_dtype_null_keeps_the_checkpoints_own(tmp_path):
    tiny_llama(dtype=torch.bfloat16).save_pretrained(tmp_path)
    bpe().save_pretrained(tmp_path)
    assert load(config(tmp_path, dtype=None), CAUSAL_LM).facts["dtype"] == "bfloat16"
    assert load(config(tmp_path), CAUSAL_LM).facts["dtype"] == "float32"


def test_a_head_of_another_size_is_replaced(tmp_path):
    tiny_bert(num_labels=3).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    assert load(config(tmp_path), SEQUENCE_CLASSIFICATION, label_settings(3)).facts["new_weights"] == []
    loaded = load(config(tmp_path), SEQUENCE_CLASSIFICATION, label_settings(5))
    assert loaded.model.classifier.weight.shape[0] == 5
    assert loaded.facts["new_weights"] == ["classifier.bias", "classifier.weight"]


def test_missing_weights_outside_the_head_are_refused(encoder):
    file = encoder / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights.*encoder.layer.1.output.dense.weight"):
        load(config(encoder), SEQUENCE_CLASSIFICATION, label_settings(2))


def test_an_encoder_is_no_language_model(encoder):
    with pytest.raises(UserError, match="a bert model reads a text in both directions"):
        load(config(encoder), CAUSAL_LM)


def test_a_missing_pad_token_becomes_eos_for_tokenizer_and_model(tmp_path):
    tiny_llama(pad_token_id=None).save_pretrained(tmp_path)
    tokenizer = bpe()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load(config(tmp_path), SEQUENCE_CLASSIFICATION, label_settings(2))
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == loaded.model.config.pad_token_id == 2
    assert loaded.facts["new_weights"] == ["score.weight"]


def test_the_revision_of_a_folder_follows_its_weights(llama):
    before = load(config(llama), CAUSAL_LM).revision
    assert load(config(llama), CAUSAL_LM).revision == before
    tiny_llama(seed=1).save_pretrained(llama)
    assert load(config(llama), CAUSAL_LM).revision != before


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/no/such/folder", "no such folder"),
        ("./folder", "no such folder"),
        ("a/b/c", "expected package:<name>, an existing folder or a hub id"),
        ("package:nothing", "known: .*minilm"),
    ],
)
def test_a_wrong_source_is_named(source, said):
    with pytest.raises(UserError, match=said) as error:
        load(config(source), CAUSAL_LM)
    assert source in str(error.value)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        load(config(tmp_path), CAUSAL_LM)
    tiny_llama().config.save_pretrained(tmp_path)
    bpe().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded"):
        load(config(tmp_path), CAUSAL_LM)


def test_offline_the_hub_gives_one_error_that_says_what_to_do(tmp_path):
    code = (
        "from rowsft.models.loading import load; from rowsft.errors import UserError\n"
        "from rowsft.tasks.heads import CAUSAL_LM\n"
        "try: load({'source': 'google/gemma-7b'}, CAUSAL_LM)\n"
        "except UserError as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    (line,) = result.stdout.strip().split("\n")
    for part in ("model.source=google/gemma-7b", "accept its licence", "hf auth login", "model.source=/local/folder"):
        assert part in line


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}
ARCHITECTURES = {
    "minilm": BertConfig,
    "smollm2_135m": LlamaConfig,
    "llama2_7b": LlamaConfig,
    "llama3_8b": LlamaConfig,
    "mistral_7b": MistralConfig,
    "gemma_7b": GemmaConfig,
    "bert_base": BertConfig,
    "bert_large": BertConfig,
    "deberta_v3_base": DebertaV2Config,
    "deberta_v3_large": DebertaV2Config,
    "deberta_base": DebertaConfig,
    "roberta_base": RobertaConfig,
    "llama3_2_1b": LlamaConfig,
    "qwen2_5_1_5b": Qwen2Config,
    "qwen3_1_7b": Qwen3Config,
    "gemma2_2b": Gemma2Config,
    "gemma3_1b": Gemma3TextConfig,
    "smollm3_3b": SmolLM3Config,
    "phi2": PhiConfig,
    "phi4_mini": Phi3Config,
}
# test_model_families.py and tests/recipe/test_images.py go through these.
VISION = {"vit_base", "deit_base", "dinov2_small", "dinov2_base", "vits_focus", "vits_random"}


def test_every_model_file_has_its_architecture_here():
    assert set(config_folders.names("model")) == set(ARCHITECTURES) | VISION


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_target_and_head_names_fit_the_architecture(name):
    settings = compose([f"model={name}"]).model
    assert settings.name == name
    sizes = {**SIZES, **({"num_key_value_heads": 2} if hasattr(ARCHITECTURES[name](), "num_key_value_heads") else {})}
    # The default pad token of Phi-3 lies beyond so small a vocabulary; DeBERTa has layers for relative positions.
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 32}
    sizes |= {"pad_token_id": 0, **(relative if "deberta" in name else {})}
    shape = ARCHITECTURES[name](**sizes)
    attention = settings.attn_implementation
    classifier = AutoModelForSequenceClassification.from_config(shape, attn_implementation=attention)
    if settings.head_modules == ["score"]:
        AutoModelForCausalLM.from_config(shape, attn_implementation=attention)
    modules = dict(classifier.named_modules())
    linears = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    head = {
        linear
        for linear in linears
        for module in head_modules(settings, SEQUENCE_CLASSIFICATION)
        if module in linear.split(".")
    }
    excluded = tuple(settings.exclude_modules or [])
    chosen = {
        linear
        for linear in linears
        if linear.endswith(tuple(settings.target_modules)) and not (excluded and linear.endswith(excluded))
    }
    # Every linear layer is either tuned or part of the head, and none is both.
    # Where q, k and v are one layer, a block has four.
    assert chosen | head == linears and not chosen & head and len(chosen) >= 4
    assert head_modules(settings, CAUSAL_LM) == []


@pytest.mark.slow
def test_packaged_models_have_their_real_weights():
    minilm = load(compose(["model=minilm"]).model, SEQUENCE_CLASSIFICATION, label_settings(2))
    assert minilm.facts["new_weights"] == ["classifier.bias", "classifier.weight"]
    assert minilm.facts["parameters"] == 22_713_216 + 2 * 384 + 2 and minilm.facts["licence"] and minilm.facts["caveat"]
    smollm2 = load(compose(["model=smollm2_135m"]).model, CAUSAL_LM)
    assert smollm2.facts["parameters"] == 134_515_008 and smollm2.facts["new_weights"] == []
    text = (
        "The capital of France is Paris, a city on the river Seine. It is known for the Eiffel Tower and its museums."
    )
    mixed = " ".join(sorted(text.split()))

    def perplexity(words_):
        ids = smollm2.tokenizer(words_, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return smollm2.model(ids, labels=ids).loss.exp().item()

    assert perplexity(text) < 20 < 200 < perplexity(mixed)


@pytest.mark.slow
def test_minilm_reproduces_its_known_similarity_scores():
    from rowsft.tasks.stsb import Stsb

    task = Stsb("stsb", 128)
    loaded = load(compose(["model=minilm"]).model, task.head, task.head_settings())
    line = task.reference_metrics(loaded.model, task.splits()["test"], loaded.tokenizer)
    assert line["cosine_pearson"] == pytest.approx(0.827, abs=1e-3)
    assert line["cosine_spearman"] == pytest.approx(0.820, abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"dtype": "float31"}, "model.dtype=float31: expected float32, bfloat16, float16"),
        ({"attn_implementation": "flashy"}, "model.attn_implementation=flashy: cannot be used here"),
    ],
)
def test_a_wrong_setting_is_named_and_not_blamed_on_the_source(llama, setting, said):
    with pytest.raises(UserError) as error:
        load(config(llama, **setting), CAUSAL_LM)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
