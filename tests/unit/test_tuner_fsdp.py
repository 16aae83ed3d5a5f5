"""Sharded training: two processes with half a batch each, and half of the weights each, end where one process ends.

Models are in float64, so that only the order of sums differs: losses and final values agree to 1e-9 relative. LoRA from
PEFT goes the same way beside the rows, which shows that the comparison itself is right.
"""

import os
import traceback

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rows import adapt, family
from torch import distributed, multiprocessing, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

STEPS = 3
UNPADDED = 7
EXACT = (torch.float64, torch.optim.AdamW, 1e-2)
# Adam would turn a gradient of the size of its rounding error into a step of full size.
ROUNDED = (torch.float32, torch.optim.SGD, 0.5)
METHODS = ("rows", "columns", "both", "lora")


def fresh(name: str, method: str, dtype: torch.dtype):
    """The adapted model and the whole batch, of whose loss every example has an equal part."""
    model, batch, targets = family(name, dtype)
    batch = {key: value[:, :UNPADDED] if value.ndim == 2 else value for key, value in batch.items()}
    if method != "lora":
        return adapt(model, targets, channel=method), batch
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(target_modules=targets, r=4)), batch


def loss_of(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's loss in the logits' own dtype; transformers' own is in 32 bit."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"]
    if labels.ndim == 2:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(logits, labels)


def trained(model, batch, optimizer_class, lr: float) -> list[float]:
    optimizer = optimizer_class([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(STEPS):
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def blocks(model) -> list[nn.Module]:
    return list(next(module for module in model.modules() if isinstance(module, nn.ModuleList)))


def shard(model, **settings):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in blocks(model):
        fully_shard(block, mesh=mesh, **settings)
    return fully_shard(model, mesh=mesh, **settings)


def shard_in_bfloat16(model):
    return shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))


def shard_checkpointed(model):
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    return shard(model.train())


def shard_after_evaluating(model):
    """A forward has run on the whole weights, and whatever it left in them is taken out by state_dict."""
    with torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]))
    model.state_dict()
    return shard(model)


def flatten(model, unit: type[nn.Module] | None = None):
    policy = ModuleWrapPolicy({unit or type(blocks(model)[0])})
    device = torch.device("cpu")
    return FullyShardedDataParallel(model, device_id=device, use_orig_params=True, auto_wrap_policy=policy)


def flatten_each_layer(model):
    return flatten(model, nn.Linear)


def replicate(model):
    from torch.distributed._composable.replicate_with_fsdp import replicate

    mesh = init_device_mesh("cpu", (2,))
    for block in blocks(model):
        replicate(block, mesh=mesh)
    return replicate(model, mesh=mesh)


def distribute_layers(model):
    """Every base layer keeps a half of its rows as a DTensor, and gives its whole output."""
    mesh = init_device_mesh("cpu", (2,))
    for name, module in model.named_modules():
        if name.endswith("base_layer"):
            parallelize_module(module, mesh, ColwiseParallel(output_layouts=Replicate()))
    return model


CASES = {
    f"{how.__name__}-{name}-{method}": (how, name, method)
    for how, names in ((shard, ("llama", "bert", "gpt2")), (flatten, ("llama", "gpt2")))
    for name in names
    for method in METHODS
} | {
    f"{how.__name__}-llama-{method}": (how, "llama", method)
    for how in (shard_checkpointed, shard_after_evaluating, flatten_each_layer, replicate, distribute_layers)
    for method in ("both", "lora")
}
ROUNDED_CASES = {f"in_bfloat16-{method}": (shard_in_bfloat16, "llama", method) for method in METHODS}


def run(how, name: str, method: str, rank: int) -> dict:
    dtype, *optimizer = ROUNDED if how is shard_in_bfloat16 else EXACT
    model, batch = fresh(name, method, dtype)
    if how is not distribute_layers:
        batch = {key: value[rank::2] for key, value in batch.items()}
    model = how(model)
    losses = trained(model, batch, *optimizer)
    return {"losses": losses, "state": get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))}


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    for case, settings in (CASES | ROUNDED_CASES).items():
        try:
            result = run(*settings, rank)
        except Exception:
            result = {"error": traceback.format_exc()}
        torch.save(result, f"{folder}/{case}.{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    multiprocessing.spawn(worker, (29541, str(folder)), nprocs=2)
    return folder


def read(folder, case: str) -> tuple[list[float], dict]:
    first, second = (torch.load(folder / f"{case}.{rank}.pt") for rank in (0, 1))
    assert "error" not in first, first["error"]
    assert first["state"].keys() == second["state"].keys()
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
    losses = [sum(pair) / 2 for pair in zip(first["losses"], second["losses"], strict=True)]
    return losses, first["state"]


def in_one_process(name: str, method: str, dtype: torch.dtype, *optimizer):
    """The losses, the trained values, and the frozen ones, by name."""
    model, batch = fresh(name, method, dtype)
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = trained(model, batch, *optimizer)
    values = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert all(not torch.equal(value, frozen.pop(name)) for name, value in values.items())
    return losses, values, frozen


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(case, results):
    losses, state = read(results, case)
    expected_losses, values, frozen = in_one_process(*CASES[case][1:], *EXACT)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-9, atol=0)
    assert values and state.keys() == values.keys() | frozen.keys()
    for name, value in values.items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(state[name], tensor) for name, tensor in frozen.items())


@pytest.mark.parametrize("case", ROUNDED_CASES)
def test_mixed_precision_rounds_the_products_only(case, results):
    losses, state = read(results, case)
    expected_losses, values, frozen = in_one_process(*ROUNDED_CASES[case][1:], *ROUNDED)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-2, atol=0)
    assert all(state[name].dtype == torch.float32 for name in values)
    whole, exact = (torch.cat([of[name].flatten() for name in values]) for of in (state, values))
    assert (whole - exact).norm() < 0.05 * exact.norm()
    assert all(torch.equal(state[name], tensor) for name, tensor in frozen.items())
