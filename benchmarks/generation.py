"""Token-by-token generation with the adapters active, nothing merged: rows against LoRA and against the plain model.

    python benchmarks/generation.py                      64 new tokens after 32, one text, on the Llama shape
    python benchmarks/generation.py --shape tiny_llama   seconds: does everything run?

A forward without a graph writes the rows, multiplies and restores them, layer by layer, for every single token: here
writing is the largest part of a forward that it ever is. Greedy, with keys and values kept. All models are in one
process and take their turns within each round. Writes generation.json and generation.md.
"""

import argparse
import json
import shlex
import sys
import time
import warnings
from pathlib import Path

import torch
from contenders import CONTENDERS
from shapes import DTYPES, SEED, SHAPES, Shape, batch, build
from tables import spread, spread_text, table
from torch import nn

from rowsft.measure import collect
from rowsft.measure.device import synchronize
from rowsft.store.files import write_atomic

HERE = Path(__file__).resolve().parent
PLAIN = "plain"
METHODS = (PLAIN, "rows", "columns", "both", "neurons", "lora")
REFERENCES = (PLAIN, "lora")


class Generation:
    """One method's model, and one text that it goes on with."""

    def __init__(self, shape: Shape, method: str, device: torch.device, dtype: torch.dtype, prompt: int, new: int):
        plain = build(shape, device, dtype)
        self.model: nn.Module = plain if method == PLAIN else CONTENDERS[method].attach(plain, shape.rank).model
        self.model.eval()
        self.device, self.new = device, new
        ids = batch(shape, device)["input_ids"].flatten()
        self.prompt = ids.repeat(-(-prompt // len(ids)))[:prompt][None]

    def tokens(self) -> torch.Tensor:
        """The prompt and `new` tokens after it (1, prompt + new), however probable an end of the text is."""
        return self.model.generate(
            input_ids=self.prompt,
            attention_mask=torch.ones_like(self.prompt),
            min_new_tokens=self.new,
            max_new_tokens=self.new,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )

    def seconds(self) -> float:
        """Of all new tokens, the prompt's own pass included."""
        synchronize(self.device)
        begin = time.perf_counter()
        self.tokens()
        synchronize(self.device)
        return time.perf_counter() - begin


def timed(generations: dict[str, Generation], rounds: int) -> dict[str, list[float]]:
    """Method -> seconds of each round. Each round begins with another method."""
    seconds: dict[str, list[float]] = {name: [] for name in generations}
    names = list(generations)
    for each in generations.values():
        each.tokens()
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            seconds[name].append(generations[name].seconds())
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return seconds


def rows(shape: str, seconds: dict[str, list[float]], new: int) -> list[dict]:
    """One row a method: milliseconds a token, and ratios of times, taken round by round."""
    found = []
    for name, values in seconds.items():
        row = {"method": name, "shape": shape, "token_milliseconds": spread([1e3 * each / new for each in values])}
        for reference in REFERENCES:
            if reference in seconds:
                ratios = [mine / other for mine, other in zip(values, seconds[reference], strict=True)]
                row[f"seconds_over_{reference}"] = spread(ratios)
        found.append(row)
    return found


def markdown(result: dict) -> str:
    """The table, the machine and the command."""
    keys = ["token_milliseconds", *(f"seconds_over_{reference}" for reference in REFERENCES)]
    cells = [[row["method"], *(spread_text(row[key]) if key in row else "" for key in keys)] for row in result["rows"]]
    environment, settings = result["environment"], result["settings"]
    gpus = ", ".join(gpu["name"] for gpu in environment["hardware"]["gpus"])
    where = gpus if settings["device"] == "cuda" else environment["hardware"]["cpu_model"]
    about = (
        f"{settings['shape']}, {settings['dtype']}: {settings['new']} tokens one by one after {settings['prompt']}, "
        f"one text, {settings['rounds']} rounds in turn; median [lowest, highest], ratios round by round. {where}, "
        f"{environment['threads']['torch_threads']} threads; commit {result['commit']}; `{result['command']}`"
    )
    return f"{table(['method', 'ms a token', 'time / plain', 'time / LoRA'], cells)}\n\n{about}\n"


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; what fails raises."""
    # PEFT and transformers announce renamings; nothing here is about them.
    warnings.filterwarnings("ignore")
    causal = [name for name, shape in SHAPES.items() if shape.family == "llama"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=causal, default="llama", help="model to generate with")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--prompt", type=int, default=32, help="tokens to go on from")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=10, help="of every method in turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the model")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder to write (default: benchmarks/out)")
    options = parser.parse_args(arguments)
    shape, device, dtype = SHAPES[options.shape], torch.device(options.device), DTYPES[options.dtype]
    generations = {
        name: Generation(shape, name, device, dtype, options.prompt, options.new)
        for name in dict.fromkeys(options.methods)
    }
    environment = collect({"seed": SEED})
    result = {
        "rows": rows(options.shape, timed(generations, options.rounds), options.new),
        "settings": {name: value for name, value in vars(options).items() if name not in ("methods", "out")},
        "environment": environment,
        "command": shlex.join(["python", "benchmarks/generation.py", *(arguments or sys.argv[1:])]),
        "commit": environment["git_commit"],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "generation.json", (json.dumps(result, indent=1) + "\n").encode())
    (options.out / "generation.md").write_text(markdown(result))
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
