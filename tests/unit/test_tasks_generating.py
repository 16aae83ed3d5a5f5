"""Greedy continuations in batches, against the likeliest token of plain forwards, one prompt at a time."""

import pytest
import torch
from families import DECODER, MORE_FAMILIES
from peft import LoraConfig, get_peft_model
from task_tools import bpe
from tiny import PAD, VOCAB, build, tiny_gpt2, tiny_llama
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel

import rowsft
from rowsft.measure.memory import AllocationPeak
from rowsft.tasks.generating import continuations, dry_continuation

TEXTS = [
    "what will the cat want to do next?",
    "a",
    "how would you describe the dog? the dog is happy to be here",
    "the sun",
    "a film that is fun and good",
]
NEW = 12


def prompts(tokenizer):
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def brute_force(model, prompt, most=NEW, end=None):
    """The likeliest token after another, each from a forward over all tokens so far; `end` is the last one."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + most:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == end:
                break
    return ids[len(prompt) :]


def mamba():
    config = MambaConfig(
        vocab_size=VOCAB, hidden_size=32, state_size=8, num_hidden_layers=2, pad_token_id=PAD, eos_token_id=2
    )
    return build(MambaForCausalLM, config, torch.float32, 0)


def gpt1():
    """A model that keeps no keys and values, and whose `generate` leaves the mask of padding out."""
    config = OpenAIGPTConfig(vocab_size=VOCAB, n_positions=96, n_embd=32, n_layer=2, n_head=4)
    return build(OpenAIGPTLMHeadModel, config, torch.float32, 0)


def lora(**shape):
    return get_peft_model(
        tiny_llama(**shape),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False),
    ).eval()


def rows():
    config = rowsft.RowSFTConfig(rows=3, importance="l2", target_modules="all-linear", task_type="CAUSAL_LM")
    model = rowsft.attach(tiny_llama(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


MODELS = {
    "llama": tiny_llama,
    "gpt2": lambda: tiny_gpt2(tie_word_embeddings=False),
    **{name: lambda name=name: MORE_FAMILIES[name].build(torch.float32) for name in ("gemma", "opt", "qwen2")},
    "mamba": mamba,
    "gpt1": gpt1,
    "lora": lora,
    "rows": rows,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_the_tokens_of_plain_forwards_one_by_one(name):
    model, tokenizer = MODELS[name](), bpe()
    given = prompts(tokenizer)
    expected = [brute_force(model, prompt) for prompt in given]
    assert len({tuple(tokens) for tokens in expected}) > 1
    # No token ends a text, so that all run to the limit.
    tokenizer.eos_token = None
    for batch_size in (1, 3, 8):
        got = continuations(model, given, tokenizer, NEW, batch_size)
        assert [one.token_ids for one in got] == expected
        assert not any(one.stopped for one in got)
        assert [one.text for one in got] == [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in expected]


def test_the_order_of_the_prompts_changes_nothing():
    model, tokenizer = tiny_llama(), bpe()
    given = prompts(tokenizer)
    forth = continuations(model, given, tokenizer, NEW, 2)
    assert continuations(model, given[::-1], tokenizer, NEW, 2)[::-1] == forth
    assert len(forth) == len(given)


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_a_text_ends_with_the_end_of_sequence_token_and_the_others_go_on(pad):
    model, tokenizer = tiny_llama(), bpe()
    given = prompts(tokenizer)
    free = [brute_force(model, prompt) for prompt in given]
    # What one of them writes in the middle is the end from here on.
    end = next(token for token in free[0][2:] if any(token not in tokens for tokens in free))
    tokenizer.eos_token, tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end), pad
    got = continuations(model, given, tokenizer, NEW, 8)
    assert [one.token_ids for one in got] == [brute_force(model, prompt, end=end) for prompt in given]
    assert [one.stopped for one in got] == [end in tokens for tokens in free]
    assert {one.stopped for one in got} == {True, False}
    ended = next(one for one in got if one.stopped)
    assert ended.text == tokenizer.decode(ended.token_ids[:-1], skip_special_tokens=True)


def test_a_stop_text_ends_a_row_and_is_no_part_of_its_text():
    model, tokenizer = tiny_llama(), bpe()
    tokenizer.eos_token = None
    given = prompts(tokenizer)
    free = continuations(model, given, tokenizer, NEW, 1)
    # Letters that span the border of two tokens.
    pieces = [tokenizer.decode([token]) for token in free[0].token_ids]
    at = next(i for i in range(2, NEW - 2) if pieces[i].strip() and pieces[i + 1].strip())
    stop = pieces[at][-1:] + pieces[at + 1][:1]
    got = continuations(model, given, tokenizer, NEW, 8, stop=[stop, "never there"])
    for whole, one in zip(free, got, strict=True):
        assert one.stopped == (stop in whole.text)
        assert one.text == whole.text.split(stop)[0]
        assert one.token_ids == whole.token_ids[: len(one.token_ids)]
        # Not a token more than it takes.
        assert not one.stopped or stop not in tokenizer.decode(one.token_ids[:-1])
    assert {one.stopped for one in got} == {True, False}


def test_what_the_prompt_says_stops_nothing():
    model, tokenizer = tiny_llama(), bpe()
    tokenizer.eos_token = None
    given = prompts(tokenizer)[:1]
    (free,) = continuations(model, given, tokenizer, NEW, 1)
    # The prompt's last letters and the first one generated.
    assert continuations(model, given, tokenizer, NEW, 1, stop=["xt?" + free.text[0], "cat want"]) == [free]


def test_a_checkpoints_generation_settings_take_no_part_and_are_left_as_they_are():
    model, tokenizer = tiny_llama(), bpe()
    tokenizer.eos_token = None
    given = prompts(tokenizer)
    plain = continuations(model, given, tokenizer, NEW, 8)
    token = plain[0].token_ids[1]
    own = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[token],
        eos_token_id=[token],
        forced_eos_token_id=3,
        min_new_tokens=2,
        num_beams=3,
        stop_strings=["t"],
        max_length=50,
    )
    model.generation_config = own
    state = torch.random.get_rng_state()
    assert continuations(model, given, tokenizer, NEW, 8) == plain
    assert model.generation_config is own and own.repetition_penalty == 9.0
    assert torch.equal(torch.random.get_rng_state(), state)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    assert continuations(adapted, given, tokenizer, NEW, 8) == plain
    assert model.generation_config is own


@pytest.mark.parametrize("build", [tiny_llama, lora])
def test_modes_come_back_and_a_cache_is_kept_though_training_turned_it_off(build, monkeypatch):
    model, tokenizer = build(), bpe()
    model.train()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.config.use_cache = False
    widths = []
    hook = base.model.embed_tokens.register_forward_hook(lambda module, given, out: widths.append(out.shape[1]))
    continuations(model, prompts(tokenizer), tokenizer, 4, 8)
    hook.remove()
    longest = max(map(len, prompts(tokenizer)))
    assert widths == [longest, 1, 1, 1]
    assert model.training and base.model.layers[0].training


def test_autocast_in_sixteen_bits_generates_as_the_model_under_it_would_one_by_one():
    model, tokenizer = tiny_llama(), bpe()
    tokenizer.eos_token = None
    given = prompts(tokenizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = continuations(model, given, tokenizer, NEW, 8)
        apart = continuations(model, given, tokenizer, NEW, 1)
    # In 16 bits padding moves a sum's last bit: ties are broken otherwise, first tokens are far apart.
    assert [one.token_ids[0] for one in together] == [one.token_ids[0] for one in apart]
    assert all(len(one.token_ids) == NEW for one in together)


def test_a_window_of_attention_is_kept_in_a_batch():
    from transformers import MistralConfig, MistralForCausalLM

    model = build(MistralForCausalLM, MistralConfig(**DECODER, sliding_window=6), torch.float32, 0)
    tokenizer = bpe()
    given = prompts(tokenizer)
    tokenizer.eos_token = None
    got = continuations(model, given, tokenizer, NEW, 8)
    assert [one.token_ids for one in got] == [brute_force(model, prompt) for prompt in given]


@pytest.mark.parametrize("name", ["llama", "lora", "gpt1"])
@pytest.mark.parametrize("new", [1, 2, 30])
def test_what_a_plan_computes_takes_the_memory_of_generating(name, new):
    """A cache that outweighs all else, but for the model that keeps none."""
    shape = {"head_dim": 128, "num_key_value_heads": 4, "num_hidden_layers": 3}
    model = {"llama": lambda: tiny_llama(**shape), "lora": lambda: lora(**shape), "gpt1": gpt1}[name]()
    tokenizer, prompt = bpe(), 20
    tokenizer.eos_token = None
    continuations(model, [[5] * prompt] * 4, tokenizer, 1, 4)
    with AllocationPeak("cpu") as measured:
        continuations(model, [[5] * prompt] * 4, tokenizer, new, 4)
    ids = torch.ones(4, 64, dtype=torch.int64)
    with AllocationPeak("cpu") as dry:
        dry_continuation(model, ids, prompt, new)
    # Some kilobytes of ids and masks more or less.
    assert dry.new_peak_bytes == pytest.approx(measured.new_peak_bytes, rel=0.01, abs=8_000)
