"""Every family of conf/model, tiny and random, through loading, scoring, tuning: padding changes nothing.

The scores that batches are held against are transformers' own, of one example at a time without padding or mask.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from families import DECODER, ENCODER
from omegaconf import OmegaConf
from peft import PeftModel
from PIL import Image
from task_tools import bpe, words
from tiny import build
from tokenizers import processors
from transformers import AutoConfig, AutoTokenizer, ViTImageProcessor

from rowsft.config.compose import compose
from rowsft.errors import UserError
from rowsft.methods.base import method_class, selected
from rowsft.models.loading import load, targets_of
from rowsft.models.options import model_class
from rowsft.selection.budget import Budget
from rowsft.tasks.causal import CausalTask, encode_answers
from rowsft.tasks.classification import ClassificationTask
from rowsft.tasks.heads import CAUSAL_LM, IMAGE_CLASSIFICATION, SEQUENCE_CLASSIFICATION, label_settings


@dataclass(frozen=True)
class Case:
    """A file of conf/model, the model type that it is made for, and what of the tiny configuration is the family's."""

    file: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)


# transformers mixes dtypes in its attention.
FLOAT32_ALONE = {"deberta"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# A window shorter than the texts, so that it bites.
SLIDING = {"sliding_window": 6}
DECODERS = {
    "llama2": Case("llama2_7b", "llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama3": Case("llama3_8b", "llama"),
    "llama3.2": Case("llama3_2_1b", "llama", {"tie_word_embeddings": True}),
    "mistral": Case("mistral_7b", "mistral", SLIDING),
    "gemma": Case("gemma_7b", "gemma", {"tie_word_embeddings": True}),
    "gemma2": Case("gemma2_2b", "gemma2", {**SLIDING, "tie_word_embeddings": True}),
    "gemma3": Case(
        "gemma3_1b",
        "gemma3_text",
        {**SLIDING, "tie_word_embeddings": True, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "qwen2.5": Case("qwen2_5_1_5b", "qwen2", {"tie_word_embeddings": True}),
    "qwen3": Case("qwen3_1_7b", "qwen3", {"tie_word_embeddings": True}),
    "smollm2": Case("smollm2_135m", "llama", {"tie_word_embeddings": True}),
    "smollm3": Case("smollm3_3b", "smollm3", {"tie_word_embeddings": True, "no_rope_layers": [1, 0]}),
    "phi": Case("phi2", "phi", {"resid_pdrop": 0.0}),
    "phi4": Case("phi4_mini", "phi3", {"tie_word_embeddings": True}),
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32, "pooler_dropout": 0.0}
ENCODERS = {
    "bert": Case("bert_base", "bert", {"type_vocab_size": 2}),
    "roberta": Case("roberta_base", "roberta", {"type_vocab_size": 1}),
    "deberta": Case("deberta_base", "deberta", {**RELATIVE, "max_relative_positions": 8, "type_vocab_size": 0}),
    "deberta_v3": Case(
        "deberta_v3_base",
        "deberta-v2",
        {**RELATIVE, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0},
    ),
}
PATCHES = {"image_size": 16, "patch_size": 4, "mlp_ratio": 2}
VISION = {
    "vit": Case("vit_base", "vit", PATCHES),
    "deit": Case("deit_base", "deit", {**PATCHES, "architectures": ["DeiTForImageClassification"]}),
    "dinov2": Case("dinov2_small", "dinov2", PATCHES),
}
FAMILIES = DECODERS | ENCODERS | VISION
# What a tokenizer's files say: of the sides, of the pad token (None: they name none), of token types. Every two of them
# meet in each combination.
SAID = [
    *(("left", "<pad>", True), ("left", None, False), ("left", "<unk>", True)),
    *(("right", "<pad>", False), ("right", None, True), ("right", "<unk>", False)),
]
# Answers to prompts of their own, and such as share one, which takes another path; a tokenizer knows no "#".
PROMPTS = [("a dull film", "good"), ("the cat will sleep in the sun and", "slow #"), ("how", "fun")]
SHARED = [*PROMPTS, ("a dull film", "that is bad"), ("how", "would you"), ("how", "the dog")]
# The last one of the single texts ends with an unknown token, which is padding in some of the files.
TEXTS = ["the film is bad and slow", "cat", "the dog is happy to be here #"]
PAIRS = ["fun", "the sun", "will the cat want to sleep"]
# Of bfloat16, which keeps 8 bits, the largest part that a number may be off by.
ROUNDING = 2**-8


class Answers(CausalTask):
    """Prompts and answers, given."""

    _read = _facts = None

    def encode(self, examples, tokenizer, /):
        prompts, answers = zip(*examples, strict=True)
        return encode_answers(tokenizer, prompts, answers, self.max_length, end=True)

    def reference_metrics(self, *given):
        raise NotImplementedError

    def evaluate(self, *given, **settings):
        raise NotImplementedError


class Texts(ClassificationTask):
    """Texts or pairs of texts, given, of three classes."""

    _read = _facts = None
    num_labels = 3


def save(case, head, folder):
    """A seeded tiny model with that head in `folder`, with weights so large that every position counts."""
    shape = DECODER if case in DECODERS.values() else ENCODER
    config = AutoConfig.for_model(case.kind, **{**shape, "initializer_range": 0.2, "num_labels": 3, **case.settings})
    build(model_class(head).from_config, config, torch.float32, seed=0).save_pretrained(folder)


def write_tokenizer(tokenizer, folder, side="right", pad="<pad>", types=False):
    """Save a tokenizer whose files say that of padding and truncation, of the pad token, and of token types."""
    tokenizer.save_pretrained(folder)
    path, fast = folder / "tokenizer_config.json", folder / "tokenizer.json"
    said = json.loads(path.read_text()) | {"padding_side": side, "truncation_side": side, "pad_token": pad}
    said |= {"bos_token": "<s>", "eos_token": "</s>"}
    said["model_input_names"] = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))
    # As files of sentence encoders have it: all texts of one length. transformers takes a pad token from there, too.
    cuts = {"direction": side.title(), "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fills = {"strategy": {"Fixed": 9}, "direction": side.title(), "pad_to_multiple_of": None, "pad_type_id": 0}
    given = json.loads(fast.read_text()) | {"truncation": cuts}
    if pad is not None:
        given["padding"] = {**fills, "pad_id": tokenizer.convert_tokens_to_ids(pad), "pad_token": pad}
    fast.write_text(json.dumps(given))


def settings_of(case, folder, dtype="float32"):
    """What conf/model says of the family, with the folder as its source."""
    return OmegaConf.merge(_model_file(case.file), {"source": str(folder), "dtype": dtype})


@cache
def _model_file(name):
    return compose([f"model={name}"]).model


def loaded(case, head, folder, dtype="float32"):
    """The model and its processor as a run gets them."""
    labels = label_settings(3) if head.fresh else None
    got = load(settings_of(case, folder, dtype), head, labels)
    assert got.facts["new_weights"] == [] and got.facts["dtype"] == dtype
    return got.model, got.processor


def plain(case, head, folder, dtype=torch.float32):
    """The same by transformers alone."""
    kernel = settings_of(case, folder).attn_implementation
    return model_class(head).from_pretrained(folder, dtype=dtype, attn_implementation=kernel).eval()


def encoder_of(folder):
    """From texts to token ids by transformers, which for some families makes a tokenizer of its own of the files."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda *texts: tokenizer(*texts, truncation=False, padding=False)["input_ids"]


@torch.no_grad()
def likelihoods(model, folder, examples):
    """Summed log-probability of each answer, one forward pass each."""
    sums, ids_of = [], encoder_of(folder)
    for prompt, answer in examples:
        before, after = ids_of(prompt), ids_of(answer)
        ids = torch.tensor([[*before, *after, bpe().eos_token_id]])
        log_probabilities = model(ids).logits[0, len(before) - 1 : -1].float().log_softmax(-1)
        sums.append(log_probabilities.gather(1, ids[0, len(before) :, None]).sum().item())
    return torch.tensor(sums)


def scored(model, tokenizer, examples, batch_size=8):
    task = Answers("answers", 64)
    scores = task.score_answers(model, task.encode(examples, tokenizer), tokenizer, batch_size)
    return torch.tensor([score.log_likelihood for score in scores])


@torch.no_grad()
def classified(model, tokenizer, examples, max_length=64):
    task = Texts("texts", max_length, "accuracy")
    batch = task.collator(tokenizer, model)(task.encode(examples, tokenizer))
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def examples_of(case):
    """Single texts for causal models, pairs for encoders."""
    if case in DECODERS.values():
        return [{"text": text, "label": 0} for text in TEXTS]
    return [{"text": text, "pair": pair, "label": 0} for text, pair in zip(TEXTS, PAIRS, strict=True)]


@torch.no_grad()
def one_by_one(case, model, folder, examples, cut=None):
    """Logits of each example, one forward pass each; token types where the model tells the texts of a pair apart."""
    rows, ids_of = [], encoder_of(folder)
    model.config.pad_token_id = None if case in DECODERS.values() else model.config.pad_token_id
    for each in examples:
        ids = ids_of(*(each[name] for name in ("text", "pair") if name in each))
        batch = {"input_ids": torch.tensor([ids[:cut]])}
        if getattr(model.config, "type_vocab_size", 0) > 1:
            first = ids.index(words().sep_token_id) + 1
            batch["token_type_ids"] = torch.tensor([[int(place >= first) for place in range(len(ids))]])
        rows.append(model(**batch).logits[0])
    return torch.stack(rows)


def off_by(values, expected):
    """The largest difference, as a part of the largest value."""
    return ((values.float() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", DECODERS)
def test_answers_score_alike_whatever_the_tokenizers_files_say(name, tmp_path):
    case = DECODERS[name]
    save(case, CAUSAL_LM, tmp_path)
    write_tokenizer(bpe(), tmp_path)
    expected = likelihoods(plain(case, CAUSAL_LM, tmp_path), tmp_path, SHARED)
    for side, pad, types in SAID:
        write_tokenizer(bpe(), tmp_path, side, pad, types)
        model, tokenizer = loaded(case, CAUSAL_LM, tmp_path)
        for examples in (PROMPTS, SHARED):
            torch.testing.assert_close(
                scored(model, tokenizer, examples), expected[: len(examples)], rtol=1e-4, atol=1e-4
            )
    assert (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
        or not model.config.tie_word_embeddings
    )


@pytest.mark.parametrize("name", DECODERS | ENCODERS)
def test_texts_are_classified_alike_whatever_the_tokenizers_files_say(name, tmp_path):
    case = FAMILIES[name]
    save(case, SEQUENCE_CLASSIFICATION, tmp_path)
    write_tokenizer(bpe() if name in DECODERS else words(), tmp_path)
    examples = examples_of(case)
    expected = one_by_one(case, plain(case, SEQUENCE_CLASSIFICATION, tmp_path), tmp_path, examples)
    for side, pad, types in SAID:
        write_tokenizer(bpe() if name in DECODERS else words(), tmp_path, side, pad, types)
        model, tokenizer = loaded(case, SEQUENCE_CLASSIFICATION, tmp_path)
        torch.testing.assert_close(classified(model, tokenizer, examples), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_is_cut_at_its_end_and_saved_tokenizers_pad_as_their_models_were_trained(side, tmp_path):
    for name, head, padding in (("llama3", SEQUENCE_CLASSIFICATION, "right"), ("llama3", CAUSAL_LM, "left")):
        save(DECODERS[name], head, tmp_path)
        write_tokenizer(bpe(), tmp_path, side)
        model, tokenizer = loaded(DECODERS[name], head, tmp_path)
        assert (tokenizer.padding_side, tokenizer.truncation_side) == (padding, "right")
        if head is SEQUENCE_CLASSIFICATION:
            examples = examples_of(DECODERS[name])
            expected = one_by_one(DECODERS[name], plain(DECODERS[name], head, tmp_path), tmp_path, examples, cut=5)
            cut = classified(model, tokenizer, examples, max_length=5)
            torch.testing.assert_close(cut, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ending", ["</s>", "<s>"])
def test_a_text_that_ends_with_the_pad_token_is_read_to_its_end(ending, tmp_path):
    """As where a tokenizer without pad token closes every text with its end-of-sequence token, which then pads."""
    case = DECODERS["llama3"]
    save(case, SEQUENCE_CLASSIFICATION, tmp_path)
    tokenizer = bpe()
    closing = [(ending, tokenizer.convert_tokens_to_ids(ending))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {ending}", special_tokens=closing
    )
    write_tokenizer(tokenizer, tmp_path, pad=None)
    model, own = loaded(case, SEQUENCE_CLASSIFICATION, tmp_path)
    reference = plain(case, SEQUENCE_CLASSIFICATION, tmp_path)
    reference.config.pad_token_id = None
    with torch.no_grad():
        rows = [reference(torch.tensor([[*bpe()(text)["input_ids"], closing[0][1]]])).logits[0] for text in TEXTS]
    torch.testing.assert_close(classified(model, own, examples_of(case)), torch.stack(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FLOAT32_ALONE])
def test_in_bfloat16_padding_costs_no_more_than_rounding(name, tmp_path):
    case = FAMILIES[name]
    if name in DECODERS:
        save(case, CAUSAL_LM, tmp_path)
        write_tokenizer(bpe(), tmp_path)
        exact = likelihoods(plain(case, CAUSAL_LM, tmp_path), tmp_path, SHARED)
        alone = likelihoods(plain(case, CAUSAL_LM, tmp_path, torch.bfloat16), tmp_path, SHARED)
        together = scored(*loaded(case, CAUSAL_LM, tmp_path, "bfloat16"), SHARED)
    elif name in ENCODERS:
        save(case, SEQUENCE_CLASSIFICATION, tmp_path)
        write_tokenizer(words(), tmp_path)
        examples = examples_of(case)
        exact = one_by_one(case, plain(case, SEQUENCE_CLASSIFICATION, tmp_path), tmp_path, examples)
        alone = one_by_one(case, plain(case, SEQUENCE_CLASSIFICATION, tmp_path, torch.bfloat16), tmp_path, examples)
        together = classified(*loaded(case, SEQUENCE_CLASSIFICATION, tmp_path, "bfloat16"), examples)
    else:
        save(case, IMAGE_CLASSIFICATION, tmp_path)
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
        exact, alone = (seen_alone(plain(case, IMAGE_CLASSIFICATION, tmp_path, dtype)) for dtype in DTYPES.values())
        together = seen_together(*loaded(case, IMAGE_CLASSIFICATION, tmp_path, "bfloat16"))
        single = seen_together(*loaded(case, IMAGE_CLASSIFICATION, tmp_path))
        torch.testing.assert_close(single, exact, rtol=1e-4, atol=1e-4)
    assert off_by(together, exact) <= 2 * off_by(alone, exact) + ROUNDING


def pictures():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]


@torch.no_grad()
def seen_alone(model):
    pixels = ViTImageProcessor(size={"height": 16, "width": 16})(pictures(), return_tensors="pt")["pixel_values"]
    return torch.cat([model(each.to(model.dtype).unsqueeze(0)).logits for each in pixels])


@torch.no_grad()
def seen_together(model, processor):
    return model(**batch_of(model, processor, IMAGE_CLASSIFICATION)).logits


def batch_of(model, processor, head):
    """A batch with labels, as the task's collator makes it."""
    if head is IMAGE_CLASSIFICATION:
        pixels = processor(pictures(), return_tensors="pt")["pixel_values"].to(model.dtype)
        return {"pixel_values": pixels, "labels": torch.tensor([0, 1, 2])}
    if head is CAUSAL_LM:
        task = Answers("answers", 64)
        encoded = task.encode(PROMPTS, processor)
    else:
        task = Texts("texts", 64, "accuracy")
        encoded = task.encode([{"text": text, "label": label} for label, text in enumerate(TEXTS)], processor)
    return task.collator(processor, model)(encoded)


HEADS = {
    **dict.fromkeys(DECODERS, CAUSAL_LM),
    **dict.fromkeys(ENCODERS, SEQUENCE_CLASSIFICATION),
    **dict.fromkeys(VISION, IMAGE_CLASSIFICATION),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FLOAT32_ALONE)
def test_a_family_that_computes_in_float32_alone_is_refused_in_another_dtype(name, dtype, tmp_path):
    save(FAMILIES[name], SEQUENCE_CLASSIFICATION, tmp_path)
    write_tokenizer(words(), tmp_path)
    with pytest.raises(UserError, match=f"model.dtype={dtype}: .* set model.dtype=float32"):
        loaded(FAMILIES[name], SEQUENCE_CLASSIFICATION, tmp_path, dtype)


CHECKED = [pair for pair in product(FAMILIES, DTYPES) if pair[1] == "float32" or pair[0] not in FLOAT32_ALONE]


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
@pytest.mark.parametrize("method_name", ["row_sft", "lora"])
@pytest.mark.parametrize(("name", "dtype"), CHECKED)
def test_an_adapter_trains_and_is_read_back(name, method_name, dtype, tmp_path):
    case, head = FAMILIES[name], HEADS[name]
    save(case, head, tmp_path)
    if name in VISION:
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    else:
        write_tokenizer(bpe() if name in DECODERS else words(), tmp_path)
    model, processor = loaded(case, head, tmp_path, dtype)
    batch = batch_of(model, processor, head)
    untouched = model(**batch).logits.detach()
    method = method_class(method_name)()
    resolved = method.solve(Budget(params=3000), model, targets_of(settings_of(case, tmp_path), head))
    tuned = method.attach(model, selected(method, model, resolved, [batch]))
    optimizer = torch.optim.SGD([each for each in tuned.parameters() if each.requires_grad], lr=0.5)
    before = tuned(**batch)
    torch.testing.assert_close(before.logits, untouched, rtol=1e-5, atol=1e-5)
    before.loss.backward()
    optimizer.step()
    after = tuned.eval()(**batch).logits.detach()
    assert after.isfinite().all() and not torch.equal(after, untouched)
    method.save(tuned, tmp_path / "adapter")
    again = PeftModel.from_pretrained(loaded(case, head, tmp_path, dtype)[0], tmp_path / "adapter").eval()
    assert torch.equal(again(**batch).logits, after)
