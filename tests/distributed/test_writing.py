"""Two processes that hold a part of the weights each write the answers that one process writes."""

import json

import pytest
from runs_of_ranks import go, in_processes, record_of
from tiny import tiny_llama
from tiny_tokenizer import byte_level

from rowsft.runner.ranks import ALONE

pytestmark = pytest.mark.whole


def overrides(workshop, store, *more):
    folder = workshop.folder / "models" / "writer"
    if not folder.exists():
        tiny_llama(vocab_size=260, max_position_embeddings=128).save_pretrained(folder)
        byte_level().save_pretrained(folder)
        rows = [{"q": "and again " * (i % 3) + str(i), "a": f"#### {i}"} for i in range(20)]
        (workshop.folder / "data" / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("task=", "task.data.path=", "task.max_length=")
    given = [*more, *(one for one in workshop.overrides("llama") if not one.startswith(own))]
    given += ["task=gsm8k", f"task.data.path={workshop.folder / 'data' / 'sums.jsonl'}"]
    given += ['task.prompt="{q}"', 'task.response=" {a}"', "task.max_length=64", "task.max_new_tokens=12"]
    # A letter that some texts come to hold and others do not: the processes stop rows at their own places.
    given += [f"model.source={folder}", f"store={store}", "task.stop=[e]", "trainer.steps=2", "method=lora"]
    return [*given, "trainer.memory_probe_steps=0", "trainer.eval_batch_size=4", "task.data.validation=0.4"]


@pytest.fixture(scope="module")
def stores(workshop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    in_processes(2, {"runs": [{"overrides": overrides(workshop, folder / "two", "trainer=fsdp")}]}, folder)
    assert go(overrides(workshop, folder / "one"), ALONE).state == "done"
    return folder


def rows(record):
    return [json.loads(line) for line in record.file("predictions").read_text().splitlines()]


def test_sharded_processes_write_what_one_process_writes(workshop, stores):
    two = record_of(stores / "two", overrides(workshop, stores / "two", "trainer=fsdp"))
    one = record_of(stores / "one", overrides(workshop, stores / "one"))
    assert two.state == "done" and len(rows(two)) == len(rows(one)) > 8
    for mine, other in zip(rows(two), rows(one), strict=True):
        assert {key: mine[key] for key in ("id", "generated", "generated_tokens", "stopped", "prediction")} == {
            key: other[key] for key in ("id", "generated", "generated_tokens", "stopped", "prediction")
        }
