"""Every method, on both strategies, in two, three and four processes against one: `make distributed-test`.

test_ranks.py has a few of them, for `make test`.
"""

import pytest
from runs_of_ranks import assert_same_training, go, in_processes, record_of
from tiny import tiny_gpt2
from tiny_workshop import tokenizer

from rowsft.runner.ranks import ALONE

ACCUMULATED = "trainer.gradient_accumulation=2"
KINDS = {
    "llama rows": ("llama", ["method=row_sft"]),
    "llama columns": ("llama", ["method=row_sft", "method.channel=columns", ACCUMULATED]),
    "llama both": ("llama", ["method=row_sft", "method.channel=both"]),
    "llama neurons": ("llama", ["method=row_sft_neurons", "budget.clip=true", ACCUMULATED]),
    "llama lora": ("llama", ["method=lora", ACCUMULATED]),
    "llama lora_plus": ("llama", ["method=lora_plus", ACCUMULATED]),
    "llama dora": ("llama", ["method=dora"]),
    "llama shira": ("llama", ["method=shira", ACCUMULATED]),
    "llama pissa": ("llama", ["method=pissa"]),
    "llama cla": ("llama", ["method=cla"]),
    "llama hira": ("llama", ["method=hira", ACCUMULATED]),
    "llama miss": ("llama", ["method=miss"]),
    "llama full": ("llama", ["method=full"]),
    "tied full": ("gpt2", ["method=full", ACCUMULATED]),
    "tied rows": ("gpt2", ["method=row_sft"]),
    "bert rows": ("bert", ["method=row_sft", "trainer.warm_head=2", ACCUMULATED]),
    "bert lora": ("bert", ["method=lora"]),
    "bert dora": ("bert", ["method=dora", ACCUMULATED]),
    "bert shira": ("bert", ["method=shira"]),
    "bert olora": ("bert", ["method=olora"]),
    "bert oft": ("bert", ["method=oft"]),
    "llama supertuning": ("llama", ["method=supertuning"]),
    "llama ln_tuning": ("llama", ["method=ln_tuning", ACCUMULATED]),
    "llama vera": ("llama", ["method=vera", "method.r=8", ACCUMULATED]),
    "llama ia3": ("llama", ["method=ia3"]),
    "bert vera": ("bert", ["method=vera", "method.r=8"]),
    "bert bitfit": ("bert", ["method=bitfit"]),
    "bert ln_tuning": ("bert", ["method=ln_tuning"]),
    "bert head": ("bert", ["method=head"]),
    "bert full": ("bert", ["method=full"]),
    "recomputed rows": ("llama", ["method=row_sft", "trainer.gradient_checkpointing=true"]),
    "recomputed full": ("bert", ["method=full", "trainer.gradient_checkpointing=true"]),
    "nothing trained": ("llama", ["method=none"]),
}
STRATEGIES = ("ddp", "fsdp")
SIZES = (2, 3, 4)


def overrides(workshop, store, kind, *more) -> list[str]:
    family, own = kind
    given = workshop.overrides("bert" if family == "bert" else "llama")
    if family == "gpt2":
        # Its embeddings are its output layer, too.
        given += [f"model.source={workshop.folder / 'models' / 'gpt2'}", "model.target_modules=all-linear"]
    settings = ["trainer.steps=4", "trainer.batch_size=12", "trainer.memory_probe_steps=0", f"store={store}"]
    return [*more, *given, *settings, *own]


@pytest.fixture(scope="module")
def store(workshop, tmp_path_factory):
    tiny_gpt2().save_pretrained(workshop.folder / "models" / "gpt2")
    tokenizer("llama").save_pretrained(workshop.folder / "models" / "gpt2")
    folder = tmp_path_factory.mktemp("every")
    for kind in KINDS.values():
        assert go(overrides(workshop, folder / "1", kind), ALONE).state == "done"
    for size in SIZES:
        runs = [
            {"overrides": overrides(workshop, folder / str(size), kind, f"trainer={strategy}")}
            for kind in KINDS.values()
            for strategy in STRATEGIES
        ]
        in_processes(size, {"runs": runs}, folder)
    return folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_train_what_one_does(workshop, store, kind, strategy, size):
    record = record_of(store / str(size), overrides(workshop, store / str(size), KINDS[kind], f"trainer={strategy}"))
    assert record.state == "done", record.latest.error
    expected = record_of(store / "1", overrides(workshop, store / "1", KINDS[kind]))
    assert record.result.ranks.processes == size
    if expected.file("curve") is not None:
        assert_same_training(record, expected)
    else:
        assert record.result.metrics == expected.result.metrics
