"""Tokens a second of generated answers in batches against one by one, by the code that evaluates tasks.

    python benchmarks/batched_generation.py                      16 prompts in one batch, 32 new tokens, 5 rounds
    python benchmarks/batched_generation.py --shape llama        another model of shapes.py
    python benchmarks/batched_generation.py --device cuda

Prompts have 20 to 100 tokens, so batches have padding. Both take turns within each round, in one process, and write the
same number of tokens: nothing ends a text early. Prints; stores nothing.
"""

import argparse
import random
import sys
import time
import warnings

import torch
from shapes import DTYPES, SEED, SHAPES, build
from tables import spread, spread_text, table
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rowsft.measure import collect
from rowsft.measure.device import synchronize
from rowsft.tasks.generating import continuations

LENGTHS = (20, 100)


def numbers(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer that writes ids; none of them ends a text."""
    words = {str(number): number for number in range(vocabulary)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")), pad_token="0")


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    """`count` lists of token ids, of lengths between those of LENGTHS."""
    draw = random.Random(SEED)
    return [[draw.randrange(1, vocabulary) for _ in range(draw.randint(*LENGTHS))] for _ in range(count)]


def rates(model, given: list[list[int]], tokenizer, new: int, sizes: tuple[int, ...], rounds: int) -> dict[int, list]:
    """Batch size -> tokens a second of each round; each round begins with another size."""
    found: dict[int, list[float]] = {size: [] for size in sizes}
    device = next(model.parameters()).device
    for number in range(-1, rounds):
        shift = number % len(sizes)
        for size in (*sizes[shift:], *sizes[:shift]):
            synchronize(device)
            begin = time.perf_counter()
            written = continuations(model, given, tokenizer, new, size)
            synchronize(device)
            seconds = time.perf_counter() - begin
            # The first round warms up.
            if number >= 0:
                found[size].append(sum(len(one.token_ids) for one in written) / seconds)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print one row a batch size, and the ratio of each round."""
    warnings.filterwarnings("ignore")
    causal = [name for name, shape in SHAPES.items() if shape.family == "llama"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=causal, default="tiny_llama", help="model to generate with")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="prompts at a time")
    parser.add_argument("--new", type=int, default=32, help="tokens to generate after each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the model")
    options = parser.parse_args(arguments)
    model = build(SHAPES[options.shape], torch.device(options.device), DTYPES[options.dtype])
    vocabulary = model.config.vocab_size
    given, tokenizer = prompts(options.prompts, vocabulary), numbers(vocabulary)
    found = rates(model, given, tokenizer, options.new, (1, options.batch), options.rounds)
    ratios = [many / one for one, many in zip(*found.values(), strict=True)]
    rows = [[str(size), spread_text(spread(values))] for size, values in found.items()]
    print(table(["prompts at a time", "tokens a second, median [lowest, highest]"], rows))
    environment = collect({"seed": SEED})
    print(f"\nratio, round by round: {spread_text(spread(ratios))}")
    print(
        f"{options.shape}, {options.dtype}, {options.prompts} prompts, {options.new} tokens after each, "
        f"{options.device}; {environment['hardware']['cpu_model']}, {environment['threads']['torch_threads']} threads; "
        f"commit {environment['git_commit']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
