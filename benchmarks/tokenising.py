"""CPU seconds of tokenising instructions and responses a thousand at a time against one by one, as tasks encode them.

    python benchmarks/tokenising.py                          100,000 examples of Alpaca's lengths
    python benchmarks/tokenising.py --examples 2000          seconds: does everything run?
    python benchmarks/tokenising.py --tokenizer FOLDER       another tokenizer than a byte-level one of 32,000 tokens

Texts are made by seed out of words of a Zipfian vocabulary, in Alpaca's template; the tokenizer is trained on a part of
them. Both take turns within each round, one by one on a part of the examples (`--alone`), since it takes so long. CPU
seconds are of all threads; the ratio is of seconds an example, round by round. Prints; stores nothing.
"""

import argparse
import itertools
import os
import random
import statistics
import sys
import time
import warnings

from shapes import SEED
from tables import spread, spread_text, table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rowsft.measure import collect
from rowsft.tasks.causal import encode_answers

# Alpaca's template, and the mean words of instruction with input and of response in 999 examples of Alpaca-GPT4.
TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)
PROMPT_WORDS, RESPONSE_WORDS = 14, 114
WORDS, VOCABULARY, MAX_LENGTH = 30_000, 32_000, 512
LETTERS = "etaoinshrdlucmfwypvbgk"


def examples(count: int) -> tuple[list[str], list[str]]:
    """`count` prompts and as many responses; lengths in words are exponential around the means."""
    draw = random.Random(SEED)
    words = ["".join(draw.choices(LETTERS, k=draw.randint(2, 10))) for _ in range(WORDS)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(WORDS)))

    def text(mean: int) -> str:
        length = max(1, min(10 * mean, round(draw.expovariate(1 / mean))))
        return " ".join(draw.choices(words, cum_weights=weights, k=length)).capitalize() + "."

    return [TEMPLATE.format(text(PROMPT_WORDS)) for _ in range(count)], [text(RESPONSE_WORDS) for _ in range(count)]


def byte_level(texts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of GPT-2's kind, trained on these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


def seconds(tokenizer, prompts: list[str], responses: list[str], at_once: int) -> tuple[float, float]:
    """CPU seconds of all threads, and seconds by the clock, of encoding `at_once` examples at a time."""
    cpu, clock = time.process_time(), time.perf_counter()
    for first in range(0, len(prompts), at_once):
        part = slice(first, first + at_once)
        encode_answers(tokenizer, prompts[part], responses[part], MAX_LENGTH, end=True)
    return time.process_time() - cpu, time.perf_counter() - clock


def main(arguments: list[str] | None = None) -> int:
    """Print a row each for one by one and for batches, and the ratio of each round."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--alone", type=int, default=2000, help="examples that are also encoded one by one")
    parser.add_argument("--tokenizer", help="folder or hub id; default: one trained here")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    prompts, responses = examples(options.examples)
    if options.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    else:
        tokenizer = byte_level(prompts[:5000] + responses[:5000])
    alone = min(options.alone, options.examples)
    # What comes first warms up, and says how long the examples are.
    warm = encode_answers(tokenizer, prompts[:alone], responses[:alone], MAX_LENGTH, end=True)
    found: dict[str, list[tuple[float, float]]] = {"one by one": [], "1000 at a time": []}
    for _ in range(options.rounds):
        one = seconds(tokenizer, prompts[:alone], responses[:alone], 1)
        found["one by one"].append((one[0] / alone, one[1] / alone))
        many = seconds(tokenizer, prompts, responses, 1000)
        found["1000 at a time"].append((many[0] / options.examples, many[1] / options.examples))
    rows = [
        [name, *(spread_text(spread([each[kind] for each in values]), 1e5, ".1f") for kind in (0, 1))]
        for name, values in found.items()
    ]
    print(table(["tokenised", "CPU s of 100,000, median [lowest, highest]", "s of 100,000 by the clock"], rows))
    for kind, name in enumerate(("CPU seconds", "seconds by the clock")):
        ratios = [one[kind] / many[kind] for one, many in zip(*found.values(), strict=True)]
        print(f"ratio of {name}, round by round: {spread_text(spread(ratios))}")
    tokens = statistics.mean(len(each["input_ids"]) for each in warm)
    environment = collect({"seed": SEED})
    print(
        f"{options.examples:,} examples of {tokens:.0f} tokens on average, {alone:,} of them one by one; "
        f"{options.tokenizer or f'byte-level BPE of {len(tokenizer):,} tokens'}; "
        f"{environment['hardware']['cpu_model']}, {len(os.sched_getaffinity(0))} processors; load "
        f"{os.getloadavg()[0]:.1f} at the end; commit {environment['git_commit']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
