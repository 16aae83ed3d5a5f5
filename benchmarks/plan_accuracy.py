"""How far `rowsft plan` is from what a step really allocates: every method, on a grid of shapes.

    python benchmarks/plan_accuracy.py                  small Llamas and BERTs on the CPU
    python benchmarks/plan_accuracy.py --device cuda    Llamas of 1.5 and 8 billion parameters: an 80 GB card
    python benchmarks/plan_accuracy.py --device cuda --small        of 1.5 billion alone: a 40 GB card

The measured peak is, on a CPU, what model and optimizer hold plus the profiler's exact peak of new allocations in one
warm step, on a GPU the allocator's own. A library's workspace counts, which no plan knows of: on a GPU, and in 16 bit
on a CPU with AVX-512 or AMX, where oneDNN takes some. The planned peak comes from the same step on the meta device.
"""

import argparse
import gc
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.utils import logging

from rowsft.budget import Budget
from rowsft.measure import collect, phase_memory
from rowsft.method import method_class
from rowsft.plan.autocast import autocasting, claimed_alike
from rowsft.plan.step import plan_step, run_step
from rowsft.progress import bar
from rowsft.selection import Targets

METHODS = {
    "row_sft": {"importance": "random"},
    "row_sft in": {"importance": "random", "channel": "in"},
    "row_sft neuron": {"importance": "random", "channel": "neuron"},
    "lora": {},
    "dora": {},
    "full": {},
}
BUDGET = {"method": "lora", "r": 4}
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Case:
    """One cell of the grid. attention: eager or sdpa. padded: whether the batch has padding. autocast: to bfloat16."""

    family: str
    method: str
    layers: int
    width: int
    batch: int
    length: int
    dtype: str
    attention: str
    checkpointing: bool
    padded: bool
    autocast: bool = False
    device: str = "cpu"


# What `rowsft compare` knows a cell by.
LABELS = [field.name for field in fields(Case)]


# Llama 3's proportions by width; the grid's small ones have their own.
_PUBLISHED = {
    2048: {"intermediate_size": 8192, "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8},
    4096: {"intermediate_size": 14336, "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8},
}


def gpu_grid(full: bool) -> Iterator[Case]:
    """All methods on Llamas of 1.5 billion parameters and, with `full`, of 8 billion."""
    for size in ((16, 2048, 4, 512), (32, 4096, 1, 512))[: 2 if full else 1]:
        for method, attention, checkpointing in itertools.product(METHODS, ("eager", "sdpa"), (False, True)):
            yield Case("llama", method, *size, "bfloat16", attention, checkpointing, False, device="cuda")


def grid(full: bool) -> Iterator[Case]:
    """All methods on both families; without `full` the cells that CI compares byte by byte."""
    sizes = [(2, 64, 2, 32), (4, 128, 4, 96)] if full else [(2, 32, 2, 16)]
    dtypes = ("float32", "bfloat16") if full else ("float32",)
    attentions = ("eager", "sdpa") if full else ("eager",)
    for family, method, size, dtype, attention, checkpointing, autocast in itertools.product(
        ("llama", "bert"), METHODS, sizes, dtypes, attentions, (False, True) if full else (False,), (False, True)
    ):
        yield Case(family, method, *size, dtype, attention, checkpointing, family == "bert", autocast)


def compare(case: Case) -> dict:
    """The case with planned and measured bytes and the relative error of the plan."""
    planned, measured = planned_bytes(case), measured_bytes(case)
    error = planned / measured - 1
    return {**asdict(case), "planned_bytes": planned, "measured_bytes": measured, "relative_error": error}


def planned_bytes(case: Case) -> int:
    """Tensors at the peak of the step on the meta device."""
    gpu = case.device == "cuda"
    with torch.device("meta"):
        model = attached(case)
    if case.autocast:
        model = autocasting(model, "bf16")
    batch = {name: claimed_alike(tensor.to("meta"), model) for name, tensor in batch_of(case).items()}
    return plan_step(model, batch, gpu, case.padded, max_grad_norm=MAX_GRAD_NORM).peak.total


def measured_bytes(case: Case) -> int:
    """The same of a real step."""
    torch.manual_seed(0)
    # What the case before left behind counts on a GPU.
    gc.collect()
    with torch.device(case.device):
        model = attached(case)
    batch = {name: tensor.to(case.device) for name, tensor in batch_of(case).items()}
    if case.autocast:
        # As accelerate prepares a model; an Accelerator itself would stay with the process.
        model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=torch.bfloat16)(model.forward))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, foreach=False, fused=case.device == "cuda")

    def step() -> None:
        run_step(model, optimizer, batch, max_grad_norm=MAX_GRAD_NORM)

    step()
    step()
    peak = phase_memory(step, case.device, model, optimizer)["peak_allocated_bytes"]
    held = 0 if case.device == "cuda" else sum(tensor.untyped_storage().nbytes() for tensor in batch.values())
    return peak + held


def attached(case: Case) -> nn.Module:
    """The case's model with its method on it, on the default device."""
    model = _base(case)
    name, settings = case.method.split()[0], METHODS[case.method]
    method = method_class(name)(**settings)
    head = ["bert.pooler", "classifier"] if case.family == "bert" else []
    knobs = method.solve(Budget(like=BUDGET), model, Targets(head_modules=head))
    with torch.device("cpu"):
        knobs = method.assume(model, knobs)[""]
    return method.attach(model, knobs)


def _base(case: Case) -> nn.Module:
    sizes = {
        "vocab_size": 512,
        "hidden_size": case.width,
        "intermediate_size": 3 * case.width,
        "num_hidden_layers": case.layers,
        "num_attention_heads": 4,
    }
    if case.family == "llama":
        config = LlamaConfig(**{**sizes, "num_key_value_heads": 2, **_PUBLISHED.get(case.width, {})})
        kind = LlamaForCausalLM
    elif case.family == "mixtral":
        config, kind = MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4), MixtralForCausalLM
    else:
        config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        kind = BertForSequenceClassification
    config._attn_implementation = case.attention
    model = kind(config).to(getattr(torch, case.dtype)).train()
    if case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def batch_of(case: Case) -> dict[str, Tensor]:
    """input_ids, attention_mask (batch, length) and labels, on the CPU."""
    with torch.device("cpu"):
        ids = torch.randint(3, 512, (case.batch, case.length), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        if case.padded:
            mask[-1, -3:] = 0
        labels = torch.zeros(case.batch, dtype=torch.int64) if case.family == "bert" else ids.clone()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def main() -> None:
    """Print the worst cells and the median, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--small", action="store_true", help="only the cells that CI compares; on a GPU the smaller model"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/plan_accuracy.json"))
    parsed = parser.parse_args()
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is visible; run it where there is one, or with --device cpu")
    logging.set_verbosity_error()
    cases = list((gpu_grid if parsed.device == "cuda" else grid)(not parsed.small))
    rows = [compare(case) for case in bar("comparing")(cases)]
    rows.sort(key=lambda row: -abs(row["relative_error"]))
    errors = [abs(row["relative_error"]) for row in rows]
    for row in rows[:10]:
        named = {k: v for k, v in row.items() if not k.endswith("bytes") and k != "relative_error"}
        print(f"{100 * row['relative_error']:+.4f} %  {row['planned_bytes']:,} of {row['measured_bytes']:,}  {named}")
    print(f"{len(rows)} cells: median {100 * statistics.median(errors):.4f} %, worst {100 * errors[0]:.4f} %")
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    summary = {"median_error": statistics.median(errors), "worst_error": errors[0]}
    result = {
        "command": " ".join(sys.argv),
        "labels": LABELS,
        **summary,
        "rows": rows,
        "environment": collect({"seed": 0}),
    }
    parsed.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
