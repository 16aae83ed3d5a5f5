"""How far `rowsft plan` is from what a step really allocates: every method on a grid of small shapes, on this CPU.

The measured peak is what model and optimizer hold plus the profiler's exact peak of new allocations in one warm step;
the planned one comes from the same step on the meta device. Run: python benchmarks/plan_accuracy.py
"""

import argparse
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
from rowsft.measure import phase_memory
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


# What `rowsft compare` knows a cell by.
LABELS = [field.name for field in fields(Case)]


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
    with torch.device("meta"):
        model = attached(case)
    if case.autocast:
        model = autocasting(model, "bf16")
    batch = {name: claimed_alike(tensor.to("meta"), model) for name, tensor in batch_of(case).items()}
    return plan_step(model, batch, False, case.padded, max_grad_norm=MAX_GRAD_NORM).peak.total


def measured_bytes(case: Case) -> int:
    """The same of a real step."""
    torch.manual_seed(0)
    model, batch = attached(case), batch_of(case)
    if case.autocast:
        # As accelerate prepares a model; an Accelerator itself would stay with the process.
        model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=torch.bfloat16)(model.forward))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, foreach=False)

    def step() -> None:
        run_step(model, optimizer, batch, max_grad_norm=MAX_GRAD_NORM)

    step()
    step()
    peak = phase_memory(step, "cpu", model, optimizer)["peak_allocated_bytes"]
    return peak + sum(tensor.untyped_storage().nbytes() for tensor in batch.values())


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
        config, kind = LlamaConfig(**sizes, num_key_value_heads=2), LlamaForCausalLM
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="only the cells that CI compares")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/plan_accuracy.json"))
    parsed = parser.parse_args()
    logging.set_verbosity_error()
    cases = list(grid(not parsed.small))
    rows = [compare(case) for case in bar("comparing")(cases)]
    rows.sort(key=lambda row: -abs(row["relative_error"]))
    errors = [abs(row["relative_error"]) for row in rows]
    for row in rows[:10]:
        named = {k: v for k, v in row.items() if not k.endswith("bytes") and k != "relative_error"}
        print(f"{100 * row['relative_error']:+.4f} %  {row['planned_bytes']:,} of {row['measured_bytes']:,}  {named}")
    print(f"{len(rows)} cells: median {100 * statistics.median(errors):.4f} %, worst {100 * errors[0]:.4f} %")
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    summary = {"median_error": statistics.median(errors), "worst_error": errors[0]}
    result = {"command": " ".join(sys.argv), "labels": LABELS, **summary, "rows": rows}
    parsed.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
