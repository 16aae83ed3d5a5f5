"""How far `rowsft plan` is from what a step really allocates: every method, on a grid of shapes.

    python benchmarks/plan_accuracy.py                  small Llamas and BERTs on the CPU
    python benchmarks/plan_accuracy.py --device cuda    Llamas of 1.5 and 8 billion parameters: an 80 GB card
    python benchmarks/plan_accuracy.py --device cuda --small        of 1.5 billion alone: a 40 GB card
    python benchmarks/plan_accuracy.py --device cuda --large --jobs 12     of 8 billion alone, planned by 12 processes

The measured peak is, on a CPU, what model and optimizer hold plus the profiler's exact peak of new allocations in one
warm step, where oneDNN's scratch counts, which no plan knows of (in 16 bit with AVX-512 or AMX); on a GPU the
allocator's own less cuBLAS's workspaces (`workspace_bytes` of a row; 0 on a CPU), which come from the same allocator,
are made once for every thread that multiplies and stay: a plan counts them with the context and not among tensors. The
planned peak comes from the same step on the meta device.
"""

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
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

from rowsft.config.settings import TrainerSettings
from rowsft.measure import collect, phase_memory
from rowsft.methods.base import Method, method_class, selection_bounds
from rowsft.methods.optimizing import Optimizing
from rowsft.models.quantising import quantise
from rowsft.plan.autocast import autocasting, claimed_alike
from rowsft.plan.step import plan_step, run_step
from rowsft.progress import bar
from rowsft.runner.optimizers import optimizer_maker
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets
from rowsft.store.attempt import state_of
from rowsft.store.files import write_atomic

METHODS = {
    "row_sft": {"importance": "random"},
    "row_sft columns": {"importance": "random", "channel": "columns"},
    "row_sft neurons": {"importance": "random", "channel": "neurons"},
    "lora": {},
    "dora": {},
    "full": {},
}
# Planned and measured where they are asked for.
OTHERS = {
    "lora_plus": {},
    "lora_fa": {},
    "adalora": {},
    "lisa": {"blocks": 1},
    "galore": {"rank": 8},
    "lora adamw_8bit": {},
    "full adamw_8bit": {},
}
BUDGET = {"method": "lora", "r": 4}
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Case:
    """One cell of the grid. attention: eager or sdpa. padded: whether the batch has padding. autocast: to bfloat16.
    quantize: what the base is packed in."""

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
    quantize: str | None = None

    @property
    def optimizer(self) -> str:
        """That of `trainer.optimizer`, the last word of the method's."""
        return "adamw_8bit" if self.method.endswith(" adamw_8bit") else "adamw"


# What `rowsft compare` knows a cell by.
LABELS = [field.name for field in fields(Case)]


# Llama 3's proportions by width; the grid's small ones have their own.
_PUBLISHED = {
    2048: {"intermediate_size": 8192, "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8},
    4096: {"intermediate_size": 14336, "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8},
}


_GPU_SIZES = {"small": (16, 2048, 4, 512), "large": (32, 4096, 1, 512)}


def gpu_grid(
    full: bool, sizes: tuple[str, ...] = ("small", "large"), methods: Iterable[str] = tuple(METHODS)
) -> Iterator[Case]:
    """The methods on Llamas of 1.5 billion parameters (small) and, with `full`, of 8 billion (large).

    What says most comes first: a call may be ended before it is through.
    """
    for size in (_GPU_SIZES[name] for name in sizes if full or name == "small"):
        for attention, checkpointing, method in itertools.product(("sdpa", "eager"), (False, True), methods):
            yield Case("llama", method, *size, "bfloat16", attention, checkpointing, False, device="cuda")


def grid(full: bool, methods: Iterable[str] = tuple(METHODS)) -> Iterator[Case]:
    """The methods on both families; without `full` the cells that CI compares byte by byte."""
    sizes = [(2, 64, 2, 32), (4, 128, 4, 96)] if full else [(2, 32, 2, 16)]
    dtypes = ("float32", "bfloat16") if full else ("float32",)
    attentions = ("eager", "sdpa") if full else ("eager",)
    for family, method, size, dtype, attention, checkpointing, autocast in itertools.product(
        ("llama", "bert"), methods, sizes, dtypes, attentions, (False, True) if full else (False,), (False, True)
    ):
        yield Case(family, method, *size, dtype, attention, checkpointing, family == "bert", autocast)


def compare(case: Case, planning: Future | None = None) -> dict:
    """The case with planned and measured bytes and the relative error of the plan.

    planning: planned_bytes of the case in another process; without it the plan is made here.
    """
    planned = planning.result() if planning else planned_bytes(case)
    measured, workspace = measured_bytes(case)
    return {
        **asdict(case),
        "planned_bytes": planned,
        "measured_bytes": measured,
        "workspace_bytes": workspace,
        "relative_error": planned / measured - 1,
    }


def _compared(case: Case, planning: Future | None) -> dict:
    """`compare`; `error`, and `oom`, where a cell could not be measured."""
    try:
        return compare(case, planning)
    except Exception as error:
        oom = {"oom": True} if state_of(error) == "oom" else {}
        return {**asdict(case), "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", **oom}
    finally:
        gc.collect()
        if case.device == "cuda":
            torch.cuda.empty_cache()


def _planners(jobs: int) -> ProcessPoolExecutor | None:
    """Processes that plan while this one measures; they see no GPU, whose memory is to be the measured step's own."""
    if jobs < 2:
        return None
    if torch.cuda.is_available():
        # From here on this process does not look at the variable any more; those that it starts do.
        torch.cuda.init()
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_as_planner)


def _as_planner() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()


def planned_bytes(case: Case) -> int:
    """Tensors at the peak of the step on the meta device."""
    gpu = case.device == "cuda"
    with torch.device("meta"):
        model, method = with_method(case)
    if case.autocast:
        model = autocasting(model, "bf16")
    batch = {name: claimed_alike(tensor.to("meta"), model) for name, tensor in batch_of(case).items()}
    return plan_step(
        model,
        batch,
        gpu,
        case.padded,
        max_grad_norm=MAX_GRAD_NORM,
        optimizing=Optimizing(method),
        optimizer_name=case.optimizer,
    ).peak.total


def measured_bytes(case: Case) -> tuple[int, int]:
    """The same of a real step, and the bytes of cuBLAS's workspaces, which are not among them."""
    torch.manual_seed(0)
    # What the case before left behind counts on a GPU.
    gc.collect()
    with torch.device(case.device):
        model, method = with_method(case)
    batch = {name: tensor.to(case.device) for name, tensor in batch_of(case).items()}
    if case.autocast:
        # As accelerate prepares a model; an Accelerator itself would stay with the process.
        model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=torch.bfloat16)(model.forward))
    optimizing = Optimizing(method)
    settings = TrainerSettings(optimizer=case.optimizer)
    optimizer = optimizing.optimizer(model, optimizer_maker(settings), settings.learning_rate)
    optimizing.begin(model, optimizer, 0, 100)

    def after_step() -> None:
        optimizing.after_step(model, optimizer, 0, 100)

    def step() -> None:
        run_step(model, optimizer, batch, max_grad_norm=MAX_GRAD_NORM, after_step=after_step)

    step()
    step()
    peak = phase_memory(step, case.device, model, optimizer).peak_allocated_bytes
    if case.device == "cuda":
        # The steps before have made them: they are in the peak.
        workspace = _workspace_bytes()
        return peak - workspace, workspace
    return peak + sum(tensor.untyped_storage().nbytes() for tensor in batch.values()), 0


def _workspace_bytes() -> int:
    """What cuBLAS (and cuBLASLt, which shares them) keeps of the allocator's memory, all of it given back."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is None:
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    clear()
    return before - torch.cuda.memory_allocated()


def attached(case: Case) -> nn.Module:
    """The case's model with its method on it, on the default device."""
    return with_method(case)[0]


def with_method(case: Case) -> tuple[nn.Module, Method]:
    """The same, and the method."""
    model = _base(case)
    name, settings = case.method.split()[0], (METHODS | OTHERS).get(case.method, {})
    method = method_class(name)(**settings)
    head = ["bert.pooler", "classifier"] if case.family == "bert" else []
    if case.quantize:
        quantise(model, case.quantize, head, case.family)
    resolved = method.solve(Budget(like=BUDGET), model, Targets(head_modules=head))
    with torch.device("cpu"):
        resolved = selection_bounds(method, model, resolved)[""]
    return method.attach(model, resolved), method


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


def main() -> int:
    """Print the worst cells and the median, and write all of them. Exit status 1 if one could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--small", action="store_true", help="only the cells that CI compares; on a GPU the smaller model"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/plan_accuracy.json"))
    parser.add_argument("--large", action="store_true", help="on a GPU the larger model alone")
    parser.add_argument("--methods", nargs="+", choices=METHODS | OTHERS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--jobs", type=int, default=1, help="processes that plan while this one measures")
    parser.add_argument("--resume", action="store_true", help="keep the cells that --out has of the same commit")
    parsed = parser.parse_args()
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is visible; run it where there is one, or with --device cpu")
    logging.set_verbosity_error()
    sizes = {"sizes": ("large",)} if parsed.large else {}
    methods = tuple(parsed.methods)
    if parsed.device == "cuda":
        cases = list(gpu_grid(not parsed.small, methods=methods, **sizes))
    else:
        cases = list(grid(not parsed.small, methods))
    environment = collect({"seed": 0})
    done = _measured_before(parsed.out, environment["git_commit"]) if parsed.resume else {}
    missing = [case for case in cases if case not in done]
    planners = _planners(parsed.jobs)
    plans = {case: planners.submit(planned_bytes, case) if planners else None for case in missing}
    for case in bar("comparing")(missing):
        done[case] = _compared(case, plans[case])
        rows = sorted((done[case] for case in cases if case in done), key=_by_error)
        _write(rows, parsed.out, environment)
    if planners:
        planners.shutdown()
    rows = sorted((done[case] for case in cases), key=_by_error)
    failed = [row for row in rows if "error" in row]
    errors = [abs(row["relative_error"]) for row in rows if "error" not in row]
    for row in failed:
        print(f"{'oom' if row.get('oom') else 'failed'}: {row}")
    for row in rows[: 10 if errors else 0]:
        if "error" in row:
            continue
        named = {k: v for k, v in row.items() if not k.endswith("bytes") and k != "relative_error"}
        print(f"{100 * row['relative_error']:+.4f} %  {row['planned_bytes']:,} of {row['measured_bytes']:,}  {named}")
    if errors:
        print(f"{len(errors)} cells: median {100 * statistics.median(errors):.4f} %, worst {100 * errors[0]:.4f} %")
    return 1 if failed else 0


def _by_error(row: dict) -> float:
    """The worst first, and those that could not be measured last."""
    return -abs(row.get("relative_error", 0))


def _write(rows: list[dict], out: Path, environment: dict) -> None:
    """After every cell: whoever measures may be ended at any moment."""
    errors = [abs(row["relative_error"]) for row in rows if "error" not in row]
    summary = {"median_error": statistics.median(errors), "worst_error": max(errors)} if errors else {}
    result = {
        "command": " ".join(sys.argv),
        "labels": LABELS,
        **summary,
        "rows": rows,
        "environment": environment,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, (json.dumps(result, indent=1) + "\n").encode())


def _measured_before(out: Path, commit: str | None) -> dict[Case, dict]:
    """The cells that an earlier call at this commit wrote, those that ran out of memory among them."""
    found = json.loads(out.read_text()) if out.exists() else {"rows": []}
    rows = found["rows"] if found.get("environment", {}).get("git_commit") == commit else []
    kept = [row for row in rows if row.get("oom") or "error" not in row]
    return {Case(**{label: row[label] for label in LABELS}): row for row in kept}


if __name__ == "__main__":
    sys.exit(main())
