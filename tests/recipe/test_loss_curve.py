"""The runner against a bare training loop written out here: plain PyTorch, no Trainer, no padding on the left.

Row-SFT's reference is the strongest there is: the dense model trained with every gradient outside the chosen rows set
to zero. It shares no code with the tuner.
"""

import csv
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.runner.run import run
from rowsft.store import Store

SEED, STEPS, BATCH, RATE = 2023, 6, 4, 0.003
# A language model has no task head to train alone.
CASES = [("bert", "head"), *((family, m) for family in ("llama", "bert") for m in ("row_sft", "lora", "dora", "full"))]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("family", "method"), CASES)
def test_runner_equals_bare_loop(workshop, family, method, accumulation):
    overrides = [
        *workshop.overrides(family),
        f"method={method}",
        f"trainer.gradient_accumulation={accumulation}",
        f"trainer.batch_size={BATCH // accumulation}",
        "trainer.evaluate=[validation]",
        "trainer.memory_probe_steps=0",
    ]
    config = compose(overrides)
    outcome = run(run_spec(config), trainer_settings(config), rerun=True, say=lambda text: None)
    assert outcome.state == "done", outcome.message

    record = Store(workshop.folder / "runs").get(outcome.run_id)
    with record.file("curve").open() as stream:
        measured = [float(row["loss"]) for row in csv.DictReader(stream)]
    expected = bare_losses(workshop.folder / "models" / family, family, method, record, task_examples(config))
    assert len(set(expected)) == STEPS, "a curve that does not move proves nothing"
    torch.testing.assert_close(torch.tensor(measured), torch.tensor(expected), rtol=2e-5, atol=2e-6)


def task_examples(config) -> list[dict]:
    from hydra.utils import instantiate

    return instantiate(config.task).splits()["train"]


def bare_losses(folder: Path, family: str, method: str, record, examples: list[dict]) -> list[float]:
    """Losses of STEPS optimizer steps on the same examples in the same order."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind = AutoModelForCausalLM if family == "llama" else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder)
    masks = prepare(model, family, method, record)
    model = masks.pop("model", model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(SEED)).tolist()
    model.train()
    losses = []
    for step in range(STEPS):
        # Linear decay without warm-up: 6 % of 6 steps is none.
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        rows = [examples[i] for i in order[step * BATCH : (step + 1) * BATCH]]
        # One batch, however the runner cuts it: accumulation must not change the weight of a token.
        loss = model(**(pairs_batch if family == "llama" else texts_batch)(rows, tokenizer)).loss
        optimizer.zero_grad()
        loss.backward()
        for parameter, mask in masks.items():
            parameter.grad *= mask
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def prepare(model, family: str, method: str, record) -> dict:
    """Freeze and wrap by hand; for row-SFT return {parameter: mask of what may move}."""
    resolved, head = record.result.resolved, ("classifier", "pooler")
    if method == "full":
        return {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = family == "bert" and any(part in head for part in name.split("."))
    if method == "head":
        return {}
    if method in ("lora", "dora"):
        transformers.set_seed(SEED)
        common = {"r": resolved["r"], "lora_alpha": resolved["scaling"] * resolved["r"], "use_dora": method == "dora"}
        ranks = resolved["rank_pattern"]
        wrapped = get_peft_model(
            model,
            LoraConfig(
                **common,
                rank_pattern=ranks,
                alpha_pattern={name: resolved["scaling"] * rank for name, rank in ranks.items()},
                target_modules=resolved["target_modules"],
                modules_to_save=["pooler.dense", "classifier"] if family == "bert" else None,
            ),
        )
        return {"model": wrapped}
    masks = {}
    for name, ids in chosen_rows(record).items():
        layer = model.get_submodule(name)
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                parameter.requires_grad = True
                masks[parameter] = torch.zeros_like(parameter)
                masks[parameter][ids] = 1.0
    assert masks
    return masks


def chosen_rows(record) -> dict[str, torch.Tensor]:
    """Layer name -> row ids, read from the saved adapter file."""
    saved = load_file(record.file("adapter") / "adapter_model.safetensors")
    prefix, ending = "base_model.model.", ".row_sft_ids"
    return {key.removeprefix(prefix).removesuffix(ending): ids for key, ids in saved.items() if key.endswith(ending)}


def pairs_batch(rows: list[dict], tokenizer) -> dict[str, torch.Tensor]:
    """Right-padded, labels on the response and its end-of-sequence token only, full logits."""
    encoded = []
    for row in rows:
        prompt = tokenizer(row["prompt"], add_special_tokens=True)["input_ids"]
        response = tokenizer(row["response"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        encoded.append((prompt + response, [-100] * len(prompt) + response))
    length = max(len(ids) for ids, _ in encoded)
    pad = [length - len(ids) for ids, _ in encoded]
    return {
        "input_ids": torch.tensor(
            [ids + [tokenizer.pad_token_id] * n for (ids, _), n in zip(encoded, pad, strict=True)]
        ),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * n for (ids, _), n in zip(encoded, pad, strict=True)]),
        "labels": torch.tensor([labels + [-100] * n for (_, labels), n in zip(encoded, pad, strict=True)]),
    }


def texts_batch(rows: list[dict], tokenizer) -> dict[str, torch.Tensor]:
    batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([row["label"] for row in rows])}
