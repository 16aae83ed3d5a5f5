"""Many runs in one group of processes, since starting one takes longer than a run: worker.py CASES.json.

CASES.json: {"runs": [{"overrides": [...], "stop": step or null}], "saving": folder}. Started by torchrun.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from runs_of_ranks import go
from safetensors.torch import load_file
from tiny import tiny_llama
from torch.distributed.tensor import DTensor

from rowsft.config.settings import TrainerSettings
from rowsft.runner import sharding
from rowsft.runner.ranks import Ranks, joined


def save_and_load(ranks: Ranks, folder: Path) -> None:
    """Save an adapter whose values say which process holds them, set them to zero, load them; write down what is there.

    seen.json: by parameter, the values of all processes before, and after.
    """
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj", "down_proj"], r=3))
    sharding.shard(model, ranks, torch.device("cpu"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            assert isinstance(parameter, DTensor)
            parameter.to_local().fill_(ranks.rank + 1)
    before = {name: parameter.full_tensor().tolist() for name, parameter in trained.items()}
    with sharding.whole_trained(model, keep=ranks.is_first):
        if ranks.is_first:
            model.save_pretrained(folder)
    dist.barrier()
    with torch.no_grad():
        for parameter in trained.values():
            parameter.to_local().zero_()
    saved = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(sharding.like(saved[name.replace(".default.", ".")], parameter))
    after = {name: parameter.full_tensor().tolist() for name, parameter in trained.items()}
    own = {name: parameter.to_local().unique().tolist() for name, parameter in trained.items()}
    every = ranks.gathered(own)
    if ranks.is_first:
        (folder / "seen.json").write_text(json.dumps({"before": before, "after": after, "own": every}))


def main(path: str) -> None:
    cases = json.loads(Path(path).read_text())
    group = joined(TrainerSettings(strategy="fsdp", device="cpu"))
    if "saving" in cases:
        save_and_load(group, Path(cases["saving"]))
    for case in cases["runs"]:
        outcome = go(case["overrides"], group, case.get("stop"))
        if group.is_first:
            print(outcome and outcome.state, outcome and outcome.message, *case["overrides"][-3:], flush=True)
    group.end()


if __name__ == "__main__":
    main(sys.argv[1])
