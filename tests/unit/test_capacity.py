"""What a model takes is found out before training: longest text, tokens without embeddings, texts without tokens."""

import json

import pytest
import torch
import transformers
from families import ENCODER
from refusals import refusal
from task_tools import bpe, words
from tiny import build, tiny_bert, tiny_gpt2, tiny_llama
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.models.capacity import check_length, positions_of
from rowsft.runner import run as job
from rowsft.tasks import causal

TABLE = {**ENCODER, "num_hidden_layers": 1, "max_position_embeddings": 66, "pad_token_id": 1}
DECODER = {"vocab_size": 128, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 66, "pad_token_id": 1}
OFFSET = {"vocab_size": 128, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
BART = {"vocab_size": 128, "d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
#: model class -> settings of its configuration: tables with a row for padding, with rows for an offset, and plain ones.
POSITIONS = {
    "RobertaForSequenceClassification": TABLE,
    "XLMRobertaForSequenceClassification": TABLE,
    "CamembertForSequenceClassification": {**TABLE, "pad_token_id": 4},
    "MPNetForSequenceClassification": TABLE,
    "EsmForSequenceClassification": {**TABLE, "position_embedding_type": "absolute"},
    "IBertForSequenceClassification": TABLE,
    "LongformerForSequenceClassification": {**TABLE, "attention_window": 4},
    "NystromformerForSequenceClassification": TABLE,
    "BertForSequenceClassification": TABLE,
    "DebertaV2ForSequenceClassification": TABLE,
    "GPT2LMHeadModel": DECODER,
    "OPTForCausalLM": {**OFFSET, "max_position_embeddings": 66, "word_embed_proj_dim": 32},
    "BioGptForCausalLM": TABLE,
    "BartForCausalLM": {**BART, "max_position_embeddings": 66, "is_encoder_decoder": False, "is_decoder": True},
}


def runs(model, length: int) -> bool:
    ids = torch.randint(5, 100, (2, length), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", POSITIONS)
def test_the_longest_text_is_the_longest_that_runs(name):
    model_class = getattr(transformers, name)
    model = build(model_class, model_class.config_class(**POSITIONS[name]), torch.float32, seed=0)
    longest = positions_of(model)
    assert runs(model, longest) and not runs(model, longest + 1)
    with torch.device("meta"):
        assert positions_of(model_class(model.config)) == longest
    check_length(model, longest)
    with pytest.raises(UserError) as error:
        check_length(model, longest + 1)
    said = str(error.value)
    assert said.startswith(f"task.max_length={longest + 1}: the model has {longest} positions")
    assert said.endswith(f"; lower it to {longest} or less")


def test_a_family_without_a_longest_text_says_none():
    """XLNet's configuration gives -1 for the positions it does not count."""
    settings = {"vocab_size": 128, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 64}
    model_class = transformers.XLNetForSequenceClassification
    model = build(model_class, model_class.config_class(**settings), torch.float32, seed=0)
    assert positions_of(model) is None and runs(model, 700)
    check_length(model, 512)


def test_a_model_without_an_end_takes_any_length():
    settings = {"vocab_size": 128, "hidden_size": 32, "n_layer": 1, "n_head": 4}
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**settings))
    assert positions_of(model) is None
    check_length(model, 100_000)


def plain(*more: str, **names) -> PreTrainedTokenizerFast:
    """One token a word such as w7, nothing put in front; words of other letters are dropped."""
    known = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(60)), *more]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(Regex("[a-v]"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def run(folder, model, tokenizer, rows, task, *overrides):
    """One short run of a tiny model on these rows; what it says, a line each."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for split in ("train", "validation", "test"):
        lines = [json.dumps(row) + "\n" for row in rows.get(split, rows["train"])]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    config = compose(
        [
            f"task={task}",
            "model=bert_base",
            f"model.source={folder / 'model'}",
            "model.target_modules=all-linear",
            "model.exclude_modules=null",
            "model.dtype=float32",
            "model.attn_implementation=null",
            "method=row_sft",
            "budget.rows=1",
            f"task.data.train_path={folder / 'train.jsonl'}",
            f"task.data.validation_path={folder / 'validation.jsonl'}",
            f"task.data.test_path={folder / 'test.jsonl'}",
            "task.max_length=32",
            "trainer.steps=2",
            "trainer.batch_size=4",
            "trainer.memory_probe_steps=0",
            "trainer.device=cpu",
            f"store={folder / 'runs'}",
            *overrides,
        ]
    )
    said = []
    outcome = job.run(run_spec(config), trainer_settings(config), rerun=False, say=said.append)
    assert outcome.state == "done", outcome.message
    return said


PAIRS = [{"prompt": f"w{number} w2 w3", "response": f"w{number % 5}"} for number in range(8)]
TEXTS = [{"text": f"w{number} w2 w3", "label": "good" if number % 2 else "bad"} for number in range(8)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_token_without_an_embedding_is_named_before_training(tmp_path, split):
    tokenizer = plain(*(f"w{number}" for number in range(60, 130)), pad_token="<pad>", eos_token="</s>")
    beyond = [{"prompt": "w1 w126", "response": "w3"}]
    said = refusal(run, tmp_path, tiny_llama(), tokenizer, {"train": PAIRS, split: PAIRS + beyond}, "prompt_response")
    assert f"model.source={tmp_path / 'model'}: its tokenizer has 133 ids, 5 more than its embeddings have rows" in said
    assert f"of the {split} data holds w126" in said and "model.resize_token_embeddings(133)" in said


def test_a_pad_token_without_an_embedding_is_named(tmp_path):
    tokenizer = plain(*(f"w{number}" for number in range(60, 125)), "<fill>", pad_token="<fill>", eos_token="</s>")
    said = refusal(run, tmp_path, tiny_llama(), tokenizer, {"train": PAIRS}, "prompt_response")
    assert "129 ids, 1 more than its embeddings have rows (128), and its pad_token <fill>" in said


def test_tokens_beyond_the_embeddings_that_no_text_uses_are_told_and_harm_nothing(tmp_path):
    tokenizer = plain(*(f"w{number}" for number in range(60, 130)), pad_token="<pad>", eos_token="</s>")
    said = run(tmp_path, tiny_llama(), tokenizer, {"train": PAIRS}, "prompt_response")
    assert "  warning: the tokenizer has 5 ids more than the embeddings have rows; no text uses them" in said


def test_a_tokenizer_without_pad_and_eos_is_refused(tmp_path):
    said = refusal(run, tmp_path, tiny_llama(), plain(unk_token="<unk>"), {"train": PAIRS}, "prompt_response")
    assert said.startswith(f"model.source={tmp_path / 'model'}: its tokenizer has neither a pad_token nor an eos_token")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_text_without_tokens_is_named_before_training(tmp_path, split):
    # A word that the tokenizer drops, so that no reader of data can see it.
    tokenizer = plain(pad_token="<pad>", eos_token="</s>")
    rows = {"train": TEXTS, split: [*TEXTS, {"text": "unheard", "label": "bad"}]}
    said = refusal(run, tmp_path, tiny_gpt2(), tokenizer, rows, "text_classification", "model.head_modules=[score]")
    assert f"of the {split} data gives no token" in said and "it has no BOS token" in said


def test_a_prompt_without_tokens_needs_something_in_front(tmp_path):
    rows = [*PAIRS, {"prompt": "unheard", "response": "w3"}]
    bare = plain(pad_token="<pad>")
    said = refusal(run, tmp_path / "bare", tiny_llama(), bare, {"train": rows}, "prompt_response")
    assert "of the train data gives no token" in said
    run(
        tmp_path / "eos",
        tiny_llama(),
        plain(pad_token="<pad>", eos_token="</s>"),
        {"train": rows},
        "prompt_response",
    )


def test_an_answer_without_tokens_is_named(tmp_path):
    rows = [*PAIRS, {"prompt": "w1", "response": "unheard"}]
    tokenizer = plain(pad_token="<pad>", bos_token="</s>")
    said = refusal(run, tmp_path, tiny_llama(), tokenizer, {"train": rows}, "prompt_response")
    assert "of the train data has an answer without any token" in said


def test_a_tokenizer_that_knows_no_a_trains(tmp_path):
    tokenizer = plain(pad_token="<pad>", eos_token="</s>")
    assert tokenizer.tokenize("a") == []
    run(tmp_path, tiny_llama(), tokenizer, {"train": PAIRS}, "prompt_response")
    spaced = bpe(metaspace=True)
    with_space, without = causal.encode_answers(spaced, ["Q", "Q"], [" the cat", "the cat"], 32, end=False)
    assert {**with_space, "response_bytes": 7} == without


def test_roberta_at_its_last_position_trains_and_beyond_it_is_refused(tmp_path):
    settings = {**TABLE, "num_labels": 2, "pad_token_id": 0, "max_position_embeddings": 17}
    model = build(
        transformers.RobertaForSequenceClassification, transformers.RobertaConfig(**settings), torch.float32, seed=0
    )
    rows = {"train": [{**row, "text": "fun " * 40} for row in TEXTS]}
    tokenizer = words()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    given = (tmp_path, model, tokenizer, rows, "text_classification", "model.head_modules=[classifier]")
    run(*given, "task.max_length=16")
    said = refusal(run, *given, "task.max_length=17")
    assert "the model has 16 positions for tokens (of 17, the first 1 are for padding); lower it to 16 or less" in said


def test_bert_counts_from_the_first_row():
    assert positions_of(tiny_bert()) == 64
