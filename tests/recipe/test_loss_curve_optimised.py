"""Methods with steps of their own, through the runner, against a loop written out here with PEFT or torch alone."""

import csv
import math
from importlib.util import find_spec

import pytest
import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from test_loss_curve import BATCH, RATE, SEED, STEPS, pairs_batch, task_examples, texts_batch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.runner.run import run
from rowsft.store import Store

HEAD = ["pooler.dense", "classifier"]


def of_optimizer(optimizer, after=lambda step: None):
    """An update of one optimizer, whose groups keep their rates' proportions under the schedule."""
    rates = [group["lr"] for group in optimizer.param_groups]

    def update(step, share):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        optimizer.step()
        after(step)

    return update


def lora(model, resolved):
    transformers.set_seed(SEED)
    ranks = resolved["rank_pattern"]
    config = LoraConfig(
        r=resolved["r"],
        lora_alpha=resolved["scaling"] * resolved["r"],
        rank_pattern=ranks,
        alpha_pattern={name: resolved["scaling"] * rank for name, rank in ranks.items()},
        target_modules=resolved["target_modules"],
        modules_to_save=HEAD if resolved["head_modules"] else None,
    )
    return get_peft_model(model, config)


def lora_plus(model, resolved):
    wrapped = lora(model, resolved)
    return wrapped, of_optimizer(create_loraplus_optimizer(wrapped, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=16))


def lora_fa(model, resolved):
    wrapped = lora(model, resolved)
    alpha = resolved["scaling"] * resolved["r"]
    return wrapped, of_optimizer(create_lorafa_optimizer(wrapped, resolved["r"], alpha, RATE))


def adalora(model, resolved):
    transformers.set_seed(SEED)
    config = AdaLoraConfig(
        init_r=resolved["r"],
        target_r=resolved["target_r"],
        lora_alpha=resolved["scaling"] * resolved["r"],
        total_step=STEPS,
        tinit=1,
        tfinal=2,
        deltaT=2,
        target_modules=resolved["target_modules"],
        modules_to_save=HEAD if resolved["head_modules"] else None,
    )
    wrapped = get_peft_model(model, config)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    return wrapped, of_optimizer(optimizer, wrapped.base_model.update_and_allocate)


def lisa(model, resolved):
    """One block of two for two steps; whatever was frozen begins anew, as by an optimizer of its own."""
    blocks = model.bert.encoder.layer if hasattr(model, "bert") else model.model.layers
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    outside = torch.optim.AdamW([p for p in model.parameters() if id(p) not in inside], lr=RATE, weight_decay=0.0)
    now = {}

    def draw(period):
        order = torch.Generator().manual_seed(1_000_003 * SEED + period)
        drawn = torch.randperm(2, generator=order)[0].item()
        if drawn not in now:
            now.clear()
            now[drawn] = torch.optim.AdamW(blocks[drawn].parameters(), lr=RATE, weight_decay=0.0)
        for number, block in enumerate(blocks):
            block.requires_grad_(number == drawn)

    def update(step, share):
        for optimizer in (outside, *now.values()):
            optimizer.param_groups[0]["lr"] = RATE * share
            optimizer.step()
        if step % 2 == 0:
            draw(step // 2)

    draw(0)
    return model, update


def galore(model, resolved):
    """torch's AdamW on what stands for the projected weights; epsilon is scaled to where the authors have it."""
    weights = [model.get_submodule(name).weight for name in resolved["layers"]]
    ids = {id(weight) for weight in weights}
    others = [p for p in model.parameters() if id(p) not in ids]
    stand_ins = [torch.nn.Parameter(torch.zeros(weight.shape[0], 4)) for weight in weights]
    optimizer = torch.optim.AdamW([*others, *stand_ins], lr=RATE, weight_decay=0.0)
    turned, bases = [w.shape[0] < w.shape[1] for w in weights], [None] * len(weights)
    for number, weight in enumerate(weights):
        if turned[number]:
            stand_ins[number].data = torch.zeros(weight.shape[1], 4)

    def update(step, share):
        optimizer.param_groups[0]["lr"] = RATE * share
        optimizer.param_groups[0]["eps"] = 1e-8 / math.sqrt(1 - 0.999**step)
        for number, weight in enumerate(weights):
            gradient = weight.grad.T if turned[number] else weight.grad
            if step % 3 == 1:
                bases[number] = torch.linalg.svd(gradient, full_matrices=False)[2][:4].T
            stand_ins[number].grad = gradient @ bases[number]
            stand_ins[number].data.zero_()
        optimizer.step()
        for number, weight in enumerate(weights):
            change = stand_ins[number].data @ bases[number].T
            weight.data += 0.5 * (change.T if turned[number] else change)

    return model, update


def full(model, resolved):
    """The output layer's state alone is in 8 bit: all other tensors are small, or an embedding."""
    from bitsandbytes import optim

    large = [p for n, p in model.named_parameters() if n == "lm_head.weight"]
    others = [p for n, p in model.named_parameters() if n != "lm_head.weight"]
    optimizers = [optim.AdamW8bit([{"params": large}], lr=RATE, weight_decay=0.0)]
    optimizers += [torch.optim.AdamW([p], lr=RATE, weight_decay=0.0) for p in others]
    updates = [of_optimizer(optimizer) for optimizer in optimizers]
    return model, lambda step, share: [update(step, share) for update in updates]


CASES = [
    ("llama", lora_plus, []),
    ("bert", lora_plus, []),
    ("llama", lora_fa, []),
    ("bert", lora_fa, []),
    ("bert", adalora, ["method.r=3", "method.tinit=0.17", "method.tfinal=0.34", "method.delta_t=2"]),
    ("llama", lisa, ["method.blocks=1", "method.period=2"]),
    ("bert", galore, ["method.rank=4", "method.period=3", "method.scale=0.5"]),
    pytest.param(
        "llama",
        full,
        ["trainer.optimizer=adamw_8bit"],
        marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: make quant-test"),
    ),
]


@pytest.mark.parametrize(("family", "by_hand", "own"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_runner_equals_bare_loop(workshop, family, by_hand, own):
    given = [f"method={by_hand.__name__}", "trainer.evaluate=[validation]", "trainer.memory_probe_steps=0"]
    config = compose([*workshop.overrides(family), *given, *own])
    outcome = run(run_spec(config), trainer_settings(config), rerun=True, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    record = Store(workshop.folder / "runs").get(outcome.run_id)
    with record.file("curve").open() as stream:
        measured = [float(row["loss"]) for row in csv.DictReader(stream)]

    folder = workshop.folder / "models" / family
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind, batch_of = (
        (AutoModelForCausalLM, pairs_batch) if family == "llama" else (AutoModelForSequenceClassification, texts_batch)
    )
    model, update = by_hand(kind.from_pretrained(folder), record.result.resolved)
    examples = task_examples(config)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(SEED)).tolist()
    model.train()
    expected = []
    for step in range(STEPS):
        rows = [examples[i] for i in order[step * BATCH : (step + 1) * BATCH]]
        model.zero_grad()
        loss = model(**batch_of(rows, tokenizer)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        # Linear decay without warm-up: 6 % of 6 steps is none.
        update(step + 1, 1 - step / STEPS)
        expected.append(loss.item())
    assert len(set(expected)) == STEPS, "a curve that does not move proves nothing"
    torch.testing.assert_close(torch.tensor(measured), torch.tensor(expected), rtol=2e-5, atol=2e-6)
