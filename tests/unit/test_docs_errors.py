"""docs/errors.md: every command and expression there is typed, and ends in the message that stands beneath it."""

import re
import shlex
import signal
from fnmatch import fnmatchcase
from pathlib import Path

import peft
import pytest
import torch
from tiny import VOCAB, build, tiny_bert, tiny_llama
from tiny_workshop import tokenizer
from transformers import OPTConfig, OPTForCausalLM

import rowsft
from rowsft.cli.main import main
from rowsft.errors import UserError

PAGE = Path(__file__).parents[2] / "docs/errors.md"
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
CASES = [tuple(pair) for block in BLOCKS for pair in re.findall(r"^(?:\$|>>>) (.*)\n(.*)$", block, re.MULTILINE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page's commands name, but for what they say is missing."""
    folder = tmp_path_factory.mktemp("errors")
    long = {"max_position_embeddings": 1024}
    small = {"vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "word_embed_proj_dim": 32}
    opt = build(OPTForCausalLM, OPTConfig(**small, **long, num_attention_heads=4), torch.float32, seed=0)
    for name, model in (
        ("my-llama", tiny_llama(**long)),
        ("my-bert", tiny_bert(num_labels=2, **long)),
        ("my-opt", opt),
    ):
        model.save_pretrained(folder / name)
        tokenizer("bert" if name == "my-bert" else "llama").save_pretrained(folder / name)
    words = [f"w{number} w{number + 1}" for number in range(20)]
    (folder / "pairs.jsonl").write_text("".join(f'{{"prompt": "{w}", "response": "{w}"}}\n' for w in words))
    (folder / "reviews.csv").write_text("text,label\n" + "".join(f"{w},{w > 'w2'}\n" for w in words))
    (folder / "other.csv").write_text("body,stars\ngood,5\n")
    (folder / "gaps.csv").write_text("text,label\ngood,1\n,0\n")
    return folder


@pytest.fixture(autouse=True)
def handlers():
    """The command line takes signals for itself: the handlers of this process come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def matches(printed: str, expected: str) -> bool:
    """Whether a line is the expected one, in which ... stands for any text."""
    return fnmatchcase(printed, re.sub(r"([\[*?])", r"[\1]", expected).replace("...", "*"))


def test_the_page_has_cases_and_no_other_block():
    assert len(CASES) > 20
    assert sum(len(block.strip().splitlines()) for block in BLOCKS) == 2 * len(CASES)


@pytest.mark.parametrize(("command", "expected"), [case for case in CASES if case[0].startswith("rowsft ")])
def test_a_command_ends_in_the_message_of_the_page(command, expected, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    # The hub counts as out of reach, and no device as visible.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command)[1:])
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert matches(lines[-1], expected), lines[-1]
    assert not (folder / "runs").exists() or not list((folder / "runs").glob("*/record.json"))


@pytest.mark.parametrize(("expression", "expected"), [case for case in CASES if not case[0].startswith("rowsft ")])
def test_an_expression_raises_the_message_of_the_page(expression, expected):
    names = {"rowsft": rowsft, "RowSFTConfig": rowsft.RowSFTConfig, "get_peft_model": peft.get_peft_model}
    with pytest.raises(UserError) as raised:
        eval(expression, {**names, "base": tiny_llama(), "torch": torch})
    assert matches(f"{type(raised.value).__module__}.{type(raised.value).__name__}: {raised.value}", expected)
