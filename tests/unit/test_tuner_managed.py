"""Who manages a base weight is known before the first forward, and rows are never written where somebody does."""

import copy

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, LayerwiseCastingHook, add_hook_to_module
from rows import adapt, family, logits, row_layers, shake, train
from tiny import causal_batch, tiny_gpt2, tiny_llama
from torch import distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_tensor

from rowsft.errors import UserError
from rowsft.tuner.managed import manager_of

CPU = torch.device("cpu")


def managers(model) -> set[str | None]:
    return {manager_of(layer.get_base_layer()) for layer in row_layers(model).values()}


@pytest.fixture
def mesh():
    """One process: all that two exchange, it exchanges with itself."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def by_block(model, mesh):
    for block in model.base_model.model.model.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def by_layer(model, mesh):
    for layer in row_layers(model).values():
        fully_shard(layer, mesh=mesh)
    return model


def by_base_layer(model, mesh):
    for layer in row_layers(model).values():
        fully_shard(layer.get_base_layer(), mesh=mesh)
    return model


def replicated(model, mesh):
    composable = pytest.importorskip(
        "torch.distributed._composable.replicate_with_fsdp", reason="this torch has no replicate on top of FSDP2"
    )
    return composable.replicate(model, mesh=mesh)


def flat(model, mesh):
    return FullyShardedDataParallel(model, device_id=CPU, use_orig_params=True)


def flat_without_originals(model, mesh):
    model.requires_grad_(False)
    return FullyShardedDataParallel(model, device_id=CPU, use_orig_params=False)


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("shard", [by_block, by_layer, by_base_layer, replicated, flat, flat_without_originals])
def test_sharded_weights_are_known_from_the_first_forward_on(shard, evaluated, mesh):
    model, batch, targets = family("llama")
    plain = {name: module.weight.clone() for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    tuned = adapt(model, targets)
    shake(tuned)
    expected = logits(copy.deepcopy(tuned), batch)
    if evaluated:
        logits(tuned, batch)
        tuned.state_dict()
    assert managers(tuned) == {None}
    layers = row_layers(tuned)
    sharded = shard(tuned, mesh)
    name = "replicate" if shard is replicated else "FSDP"
    assert managers(tuned) == {name}
    seen = {}

    def look(layer_name):
        def hook(base_layer, _, output):
            seen[layer_name] = manager_of(base_layer)
            assert torch.equal(base_layer.weight, plain[layer_name])

        return hook

    for layer_name, layer in layers.items():
        layer.get_base_layer().register_forward_hook(look(layer_name))
    torch.testing.assert_close(logits(sharded, batch), expected)
    assert set(seen.values()) == {name} and seen.keys() == layers.keys()


@pytest.mark.parametrize("shard", [by_block, by_layer, by_base_layer, replicated, flat, flat_without_originals])
def test_merging_a_sharded_weight_is_refused_by_the_name_of_its_manager(shard, mesh):
    model, _, targets = family("llama")
    tuned = adapt(model, targets)
    layers = row_layers(tuned)
    shard(tuned, mesh)
    name = "replicate" if shard is replicated else "FSDP"
    with pytest.raises(UserError, match=rf"cannot merge into layer model\.layers\.0.*its weight is managed by {name}"):
        next(iter(layers.values())).merge()


def test_merging_a_weight_of_zero_3_is_refused():
    model, _, targets = family("llama")
    tuned = adapt(model, targets)
    for layer in row_layers(tuned).values():
        # What DeepSpeed leaves on a parameter that it has partitioned.
        layer.get_base_layer().weight.ds_id = 1
    with pytest.raises(UserError, match="its weight is managed by DeepSpeed ZeRO-3"):
        tuned.merge_adapter()


@pytest.mark.parametrize("channel", ["rows", "columns"])
def test_the_update_of_a_sharded_layer_is_whole_or_refused(channel, mesh):
    model, _, targets = family("llama")
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    layer = next(iter(row_layers(tuned).values()))
    whole = layer.get_delta_weight("default")
    by_block(tuned, mesh)
    with pytest.raises(UserError, match=r"delta of adapter 'default' in layer model\.layers\.0.* is sharded \(FSDP\)"):
        layer.get_delta_weight("default")
    tuned.base_model.model.model.layers[0].unshard()
    assert torch.equal(layer.get_delta_weight("default"), whole)


def test_weights_that_fully_shard_ignores_are_written(mesh):
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    frozen = {p for p in tuned.parameters() if not p.requires_grad}
    fully_shard(tuned, mesh=mesh, ignored_params=frozen)
    assert managers(tuned) == {None}
    train(tuned, batch)


def offload(layer):
    add_hook_to_module(layer, AlignDevicesHook(CPU, offload=True))


def offload_behind_another_hook(layer):
    for hook in (AlignDevicesHook(CPU), AlignDevicesHook(io_same_device=True), AlignDevicesHook(CPU, offload=True)):
        add_hook_to_module(layer, hook, append=True)


@pytest.mark.parametrize("hook", [offload, offload_behind_another_hook])
def test_offloaded_weights_stay_as_they_are(hook):
    alone, batch, targets = family("llama")
    train(adapt(alone, targets), batch)
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    layers = row_layers(tuned)
    before = {name: layer.get_base_layer().weight.clone() for name, layer in layers.items()}
    for layer in layers.values():
        hook(layer.get_base_layer())
    assert managers(tuned) == {"accelerate"}
    train(tuned, batch)
    for name, layer in layers.items():
        expected = alone.get_submodule(name).row_sft_delta["default"]
        torch.testing.assert_close(layer.row_sft_delta["default"], expected, rtol=1e-3, atol=1e-5)
        layer.get_base_layer()._hf_hook.pre_forward(layer.get_base_layer())
        assert torch.equal(layer.get_base_layer().weight, before[name])


def test_weights_cast_in_every_forward_stay_as_they_are():
    batch = causal_batch()
    expected = adapt(tiny_llama(), ["q_proj"])
    tuned = adapt(tiny_llama(), ["q_proj"])
    for layer in row_layers(expected).values():
        base_layer = layer.get_base_layer()
        base_layer.weight.data = base_layer.weight.data.bfloat16().float()
    for layer in row_layers(tuned).values():
        add_hook_to_module(layer.get_base_layer(), LayerwiseCastingHook(torch.bfloat16, torch.float32, False))
    assert managers(tuned) == {"accelerate"}
    for model in (expected, tuned):
        shake(model)
    for _ in range(2):
        torch.testing.assert_close(logits(tuned, batch), logits(expected, batch))


def test_a_device_map_that_offloads_nothing_manages_nothing():
    tuned = adapt(tiny_llama(), ["q_proj"])
    dispatch_model(tuned, device_map={"": CPU}, main_device=CPU, force_hooks=True)
    assert all(hasattr(layer.get_base_layer(), "_hf_hook") for layer in row_layers(tuned).values())
    assert managers(tuned) == {None}


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_partitioned_tensors_of_zero3_are_left_alone(name):
    # DeepSpeed needs a GPU; this is the mark by which it knows its own parameters.
    tuned = adapt(tiny_gpt2(), ["c_attn"])
    layer = next(iter(row_layers(tuned).values())).get_base_layer()
    assert manager_of(layer) is None
    getattr(layer, name).ds_id = 0
    assert manager_of(layer) == "DeepSpeed ZeRO-3"


class Packed(nn.Parameter):
    """As the weights of 4-bit layers are."""


def with_weight(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(6, 4, bias=False)
    layer.weight = weight
    return layer


def test_encoded_and_shared_out_weights_have_a_manager(mesh):
    values = torch.randn(4, 6)
    flat = torch.randn(5, 6)
    managed = {
        "quantised (torch.int8)": nn.Parameter(values.to(torch.int8), requires_grad=False),
        "quantised (torch.float8_e4m3fn)": nn.Parameter(values.to(torch.float8_e4m3fn), requires_grad=False),
        "test_tuner_managed Packed": Packed(values),
        "torch DTensor": nn.Parameter(distribute_tensor(values, mesh)),
        "the owner of a larger storage": nn.Parameter(flat[:4]),
    }
    for name, weight in managed.items():
        assert manager_of(with_weight(weight)) == name
    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    assert manager_of(parametrised) == "torch Tensor"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ordinary_and_planned_weights_have_none(dtype):
    assert manager_of(nn.Linear(6, 4, dtype=dtype)) is None
    assert manager_of(nn.Linear(6, 4, dtype=dtype, device="meta")) is None
    with FakeTensorMode():
        assert manager_of(nn.Linear(6, 4, dtype=dtype)) is None
