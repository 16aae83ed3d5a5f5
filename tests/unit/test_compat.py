"""What rowsft.compat takes from inside the libraries does what it says, in whatever versions are installed."""

import gc
import importlib

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import MambaConfig, MambaForCausalLM, Trainer, TrainerCallback

from rowsft.compat import accelerate, peft, trainer, transformers
from rowsft.compat import torch as inside


def grown(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


class Seen(inside.TorchDispatchMode):
    """Every operator that ran."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


# The backward pass


def test_a_backward_pass_has_a_number_and_tells_when_it_ends():
    events = []

    def hook(gradient):
        events.append(inside.backward_pass())
        inside.when_backward_ends(lambda: events.append("ended"))

    x = grown(3)
    y = x.sin()
    y.register_hook(hook)
    loss = y.sum()
    assert inside.backward_pass() == -1
    loss.backward(retain_graph=True)
    loss.backward()
    assert events[1::2] == ["ended", "ended"]
    assert events[0] != events[2] and min(events[0], events[2]) >= 0
    assert inside.backward_pass() == -1


def test_versions_count_writes_in_place():
    x = torch.zeros(3)
    before = inside.version_of(x)
    x.add_(1)
    assert inside.version_of(x) == before + 1
    x.data.add_(1)
    assert inside.version_of(x) == before + 1


def test_autocast_and_functorch_are_seen_while_they_are_on():
    seen = []
    assert not inside.autocast_is_on() and not inside.functorch_is_on()
    with torch.autocast("cpu", torch.bfloat16):
        assert inside.autocast_is_on()
    torch.func.grad(lambda x: (seen.append(inside.functorch_is_on()), x.sum())[1])(torch.ones(2))
    assert seen == [True] and not inside.functorch_is_on()


def test_hooks_on_saved_tensors_are_seen_where_they_are_in_force():
    assert not inside.hooks_on_saved_tensors()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert inside.hooks_on_saved_tensors()
    seen = []
    checkpoint(lambda x: (seen.append(inside.hooks_on_saved_tensors()), x.sin())[1], grown(2), use_reentrant=False)
    assert seen == [True]


def test_the_plain_apply_is_the_function():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    x = grown(3)
    y = inside.plain_apply(Doubled)(x)
    y.sum().backward()
    assert torch.equal(y, 2 * x) and torch.equal(x.grad, torch.full((3,), 2.0))
    assert inside.kind_of(y.grad_fn) == "DoubledBackward"


def test_a_node_tells_what_it_has_saved():
    x, weight = grown(2, 3), torch.ones(2, 3)
    y = x * weight
    assert inside.kind_of(y.grad_fn) == "MulBackward0"
    assert inside.saved(y.grad_fn, "self") is None
    assert inside.saved(y.grad_fn, "other").data_ptr() == weight.data_ptr()
    assert not inside.saved_by_hooks(y.grad_fn, "other")
    described = inside.first_output(y.grad_fn)
    assert (tuple(described.shape), described.dtype, described.device) == ((2, 3), y.dtype, y.device)
    weight.add_(1)
    with pytest.raises(RuntimeError, match="inplace|in-place"):
        inside.saved(y.grad_fn, "other")


def test_a_node_tells_that_hooks_hold_what_it_has_saved():
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        y = grown(3) * torch.ones(3)
    assert inside.saved_by_hooks(y.grad_fn, "other")


# Storages, operators and modules


def test_storages_have_a_number_each_on_the_meta_device_too():
    base = torch.empty(4, device="meta")
    numbers = [inside.storage_id(x.untyped_storage()) for x in (base, base[1:], torch.empty(4, device="meta"))]
    assert numbers[0] == numbers[1] != numbers[2]


def test_a_dispatch_mode_sees_operators_unless_they_run_below():
    with Seen() as seen:
        torch.zeros(2).add_(1)
        with inside.without_dispatch():
            torch.ones(2).mul_(1)
    packets = [inside.packet_of(operator) for operator in seen.operators]
    assert torch.ops.aten.add_ in packets and torch.ops.aten.mul_ not in packets
    schema = inside.schema_of(torch.ops.aten.add_.Tensor)
    assert schema.arguments[0].alias_info.is_write and schema.arguments[1].alias_info is None


@pytest.mark.parametrize(
    ("packet", "work"),
    [
        (inside.NUMBER_OF, lambda: torch.ones(()).item()),
        (inside.CONVERTED, lambda: torch.ones(2).to(torch.bfloat16)),
        (inside.CPU_ATTENTION, lambda: functional.scaled_dot_product_attention(*[torch.ones(1, 2, 4, 8)] * 3)),
    ],
)
def test_operators_without_a_public_name_are_those_that_run(packet, work):
    with Seen() as seen:
        work()
    assert packet in [inside.packet_of(operator) for operator in seen.operators]


def test_every_attention_kernel_has_its_backward():
    assert [kernel.__name__ + "_backward" for kernel in inside.ATTENTION] == [
        kernel.__name__ for kernel in inside.ATTENTION_BACKWARD
    ]


def test_fake_tensors_refuse_what_only_data_can_tell():
    with inside.FakeTensorMode():
        x = torch.ones(3)
    assert isinstance(x, inside.FakeTensor) and x.device.type == "cpu"
    for look in (lambda: x.sum().item(), lambda: x.nonzero()):
        with pytest.raises(inside.LACKS_DATA):
            look()
    with x.fake_mode, inside.unset_fake_temporarily():
        assert not isinstance(torch.ones(3), inside.FakeTensor)


def test_a_modules_own_tensors_can_be_replaced():
    norm = nn.BatchNorm1d(2)
    inside.buffers_of(norm)["running_mean"] = other = torch.ones(2)
    inside.parameters_of(norm)["weight"] = None
    assert norm.running_mean is other and norm.weight is None and "bias" in inside.parameters_of(norm)
    assert set(inside.REGISTERED) <= set(vars(norm))


def test_hooks_around_a_forward_are_seen():
    layer = nn.Linear(2, 2)
    assert not inside.has_forward_hooks(layer)
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        handle = register(lambda *_: None)
        assert inside.has_forward_hooks(layer)
        handle.remove()
    assert not inside.has_forward_hooks(layer)


def test_an_operator_can_be_widened_under_autocast_and_given_back():
    x = torch.ones(2, 4, dtype=torch.bfloat16)

    def widened(value, *args, **kwargs):
        with inside.below_autocast():
            return torch.logsumexp(value.float(), *args, **kwargs)

    def dtype():
        with torch.autocast("cpu", torch.bfloat16):
            return torch.logsumexp(x, -1).dtype

    before = dtype()
    library = torch.library.Library("aten", "IMPL")
    library.impl("logsumexp", widened, "AutocastCPU")
    assert (before, dtype()) == (torch.bfloat16, torch.float32)
    inside.take_back(library)
    assert dtype() == before


def test_the_optimizers_state_is_that_of_a_step():
    made, stepped = ([nn.Parameter(torch.ones(3))] for _ in range(2))
    optimizers = [torch.optim.AdamW(each, foreach=False) for each in (made, stepped)]
    for (parameter,) in (made, stepped):
        parameter.grad = torch.ones(3)
    inside.make_state(optimizers[0])
    optimizers[1].step()
    first, second = (optimizer.state[each[0]] for optimizer, each in zip(optimizers, (made, stepped), strict=True))
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in second.items()}
    assert torch.equal(made[0], torch.ones(3))


def test_a_profile_tells_the_allocations_of_the_cpu():
    with torch.profiler.profile(profile_memory=True, with_stack=True) as profiled:
        kept = torch.empty(12345, dtype=torch.uint8)
    nodes, sizes = inside.profiled_nodes(profiled), {}
    while nodes:
        node = nodes.pop()
        nodes.extend(node.children)
        if inside.is_cpu_allocation(node):
            sizes[node.extra_fields.ptr] = node.extra_fields.alloc_size
    assert sizes[kept.data_ptr()] == 12345


def test_torchs_replicate_is_where_it_is_looked_for():
    replicate = importlib.import_module(inside._REPLICATE)
    assert inside.replicate_is_imported() and isinstance(replicate.ReplicateModule, type)
    # Models that other tests replicated refer to themselves: they are counted until they are collected.
    gc.collect()
    assert inside.replicated() == []


# accelerate, transformers and PEFT


def test_accelerates_hooks_tell_whether_they_move_a_weight():
    layer = nn.Linear(2, 2)
    assert accelerate.hook_of(layer) is None
    hook = AlignDevicesHook(execution_device="cpu")
    add_hook_to_module(layer, hook)
    assert accelerate.hook_of(layer) is hook
    assert not accelerate.exchanges_weights(hook)
    for moving in (AlignDevicesHook(offload=True), CpuOffload(), SequentialHook(hook, CpuOffload())):
        assert accelerate.exchanges_weights(moving)


def test_accelerate_widens_a_models_outputs():
    assert accelerate.convert_outputs_to_fp32(lambda x: x)(torch.ones(2, dtype=torch.bfloat16)).dtype is torch.float32


def test_a_model_tells_its_attention_and_whether_it_keeps_a_state():
    model = tiny_llama()
    model.set_attn_implementation("eager")
    assert transformers.attention_of(model.config) == "eager"
    assert transformers.commit_of(model.config) is None
    mamba = MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, state_size=2))
    assert transformers.keeps_state(mamba) and not transformers.keeps_state(model)


def test_transformers_asks_in_one_place_whether_a_tensor_is_fake():
    with inside.FakeTensorMode():
        assert transformers.import_utils.is_fake_tensor(torch.ones(2))
    assert not transformers.import_utils.is_fake_tensor(torch.ones(2))


def test_a_trainers_step_can_be_watched_and_repeated(tmp_path):
    model = tiny_llama()
    data = [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}, {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]
    order, events = [], []

    class Watching(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            events.append("step")

    def collate(rows):
        order.extend(row["input_ids"][0] for row in rows)
        return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}

    arguments = trainer.OneDeviceArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=1, use_cpu=True, report_to=[],
        save_strategy="no", train_sampling_strategy="sequential", disable_tqdm=True,
    )  # fmt: skip
    made = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Watching()])
    made.train()
    assert order[:2] == [1, 5] and events == ["step", "step"], "examples come in the order given"

    batches = [collate([row]) for row in data]
    assert trainer.labelled_tokens(made, batches) == 1 + 2
    with trainer.watched(made, events.append, lambda: events.append("begins"), lambda: events.append("ended")):
        made.training_step(made.model_wrapped, batches[0], None)
    assert torch.equal(events[2]["input_ids"], batches[0]["input_ids"]) and events[3:] == ["begins", "ended"]
    made.training_step(made.model_wrapped, batches[0], None)
    assert len(events) == 5, "nobody watches any more"

    made.args.max_grad_norm = 1e-3
    trainer.clip_gradients(made)
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    torch.testing.assert_close(norm.item(), 1e-3, rtol=1e-2, atol=0)


class OfTheHead(trainer.OwnCheckpoints):
    """Checkpoints hold the head alone; what comes of them is kept in `failures`."""

    def write_trained(self, folder):
        folder.mkdir()
        torch.save(self.model.lm_head.state_dict(), folder / "head.pt")

    def read_trained(self, folder):
        self.model.lm_head.load_state_dict(torch.load(folder / "head.pt", weights_only=True))

    def not_written(self, error):
        self.failures = [*getattr(self, "failures", []), error]


class AtTwo(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == 2


def of_the_head(folder, callbacks):
    model = tiny_llama()
    model.requires_grad_(False).lm_head.requires_grad_(True)
    rows = [[1, 2, 3], [5, 6, 7], [2, 2, 9], [8, 1, 4]]
    arguments = trainer.OneDeviceArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=1, use_cpu=True, report_to=[], seed=1,
        save_strategy="no", train_sampling_strategy="sequential", disable_tqdm=True,
    )  # fmt: skip
    return OfTheHead(
        model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        data_collator=lambda rows: {key: torch.tensor([row[key] for row in rows]) for key in rows[0]},
        callbacks=callbacks,
    )  # fmt: skip


def test_a_trainer_goes_on_from_checkpoints_that_hold_what_a_subclass_says(tmp_path):
    """Optimizer, rate, data and random streams are Trainer's: the head ends where that of one training ends."""
    whole = of_the_head(tmp_path, [AtTwo()])
    whole.train()
    (folder,) = tmp_path.glob("checkpoint-*")
    assert folder.name == "checkpoint-2" and not list(folder.glob("*.safetensors"))
    assert {"head.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {path.name for path in folder.iterdir()}
    rest = of_the_head(tmp_path / "rest", [])
    rest.train(resume_from_checkpoint=str(folder))
    assert rest.state.global_step == 4
    assert torch.equal(rest.model.lm_head.weight, whole.model.lm_head.weight)
    assert not torch.equal(rest.model.lm_head.weight, tiny_llama().lm_head.weight)


def test_a_checkpoint_that_cannot_be_written_ends_no_training(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    full = of_the_head(tmp_path, [AtTwo()])
    full.train()
    assert full.state.global_step == 4 and [type(error) for error in full.failures] == [FileExistsError]
    assert not (tmp_path / "checkpoint-2").exists(), "nothing half written is left"


def test_peft_names_all_linear_layers_but_the_head():
    model = tiny_llama()
    config = LoraConfig(target_modules="all-linear")
    peft.name_all_linear_layers(config, model)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(config.target_modules) == linears - {"lm_head"}


def test_peft_refuses_lora_in_the_layers_that_mambas_kernels_read():
    mamba = MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, state_size=2))
    names = [name for name, module in mamba.named_modules() if isinstance(module, nn.Linear)]
    refused = [name for name in names if not peft.loads_as_lora(mamba, name)]
    assert refused == [name for name in names if name.endswith("out_proj")] != []
    assert all(peft.loads_as_lora(tiny_llama(), name) for name in names)
    with pytest.raises(ValueError, match="incompatible"):
        get_peft_model(mamba, LoraConfig(target_modules=refused))


def test_pefts_buffers_are_saved_under_their_names():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.ids = peft.BufferDict(persistent=True)

    holder = Holder()
    holder.ids["default"] = torch.arange(3)
    assert list(holder.state_dict()) == ["ids.default"] and "default" in holder.ids
    assert inside.buffers_of(holder.ids) == dict(holder.ids.items())
