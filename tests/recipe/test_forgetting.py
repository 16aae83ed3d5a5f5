"""`trainer.forgetting`: loss on a general text before and after, and CSD_rel, from whole runs."""

import copy
import random
from pydoc_data.topics import topics

import pytest
import torch
from peft import PeftModel
from refusals import refusal
from transformers import AutoModelForCausalLM, AutoTokenizer

from rowsft.assets import python_reference
from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.runner.run import run
from rowsft.store import Store
from rowsft.tasks.general_text import GeneralText
from rowsft.tasks.language_modelling import LanguageModelling

WORDS = [f"w{number}" for number in range(40)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = random.Random(1)
    path = tmp_path_factory.mktemp("general") / "general.txt"
    path.write_text("".join(" ".join(draw.choice(WORDS) for _ in range(12)) + "\n" for _ in range(90)))
    return path


def go(workshop, store, *overrides, family="llama"):
    given = [*workshop.overrides(family), f"store={store}", "trainer.evaluate=[validation]", *overrides]
    config = compose(given)
    spec = run_spec(config)
    outcome = run(spec, trainer_settings(config), False, say=str)
    assert outcome.state == "done", outcome.message
    return Store(store).get(spec.run_id)


def asked(text, *more):
    return [f"trainer.forgetting.path={text}", "trainer.forgetting.max_length=24", *more]


def losses(model, tokenizer, text):
    """By the task that evaluates running text, which is tested against plain forwards."""
    path = str(text)
    data = {"train_path": path, "validation_path": path, "test_path": path}
    task = LanguageModelling("own", 24, data)
    return task.evaluate(model, task.splits()["train"], tokenizer, batch_size=3).metrics


def models(workshop, record):
    """The untouched and the tuned model in float64, from what is on disk."""
    source = workshop.folder / "models" / "llama"
    plain = AutoModelForCausalLM.from_pretrained(source).double().eval()
    folder = record.file("adapter")
    if folder is None:
        return plain, plain
    if record.config["method"]["name"] == "full":
        return plain, AutoModelForCausalLM.from_pretrained(folder).double().eval()
    adapted = PeftModel.from_pretrained(copy.deepcopy(plain), folder, autocast_adapter_dtype=False)
    return plain, adapted.double().merge_and_unload().eval()


def csd(plain, tuned, names, tokenizer, text):
    """{layer: ratio} and that of all, from every window's own tokens."""
    task = LanguageModelling("own", 24, {"path": str(text)})
    stream = [token for line in text.read_text().splitlines(keepends=True) for token in tokenizer(line)["input_ids"]]
    sums = {name: [0.0, 0.0] for name in names}
    inputs = {}
    for name in names:
        plain.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    start, end = [tokenizer.bos_token_id], 0
    while end < len(stream):
        # The first window has BOS in front, each later one moves on by half of 24.
        first, end = end, min(len(stream), end + (task.stride if end else 23))
        window = (start + stream[:end]) if not first else stream[max(0, end - 24) : end]
        with torch.no_grad():
            plain(torch.tensor([window]))
        for name in names:
            own = inputs[name][0, -(end - first) :]
            original = plain.get_submodule(name).weight
            for at, weight in enumerate((tuned.get_submodule(name).weight - original, original)):
                sums[name][at] += (own @ weight.T).square().sum().item()
    whole = [sum(pair[at] for pair in sums.values()) for at in (0, 1)]
    return {name: pair[0] / pair[1] for name, pair in sums.items()}, whole[0] / whole[1]


@pytest.mark.parametrize("method", ["none", "row_sft", "lora", "dora", "shira", "pissa", "oft", "full"])
def test_losses_and_csd_are_those_of_the_models_on_disk(workshop, tmp_path, text, method):
    overrides = [f"method={method}", "trainer.learning_rate=0.01"]
    record = go(workshop, tmp_path, *overrides, *asked(text))
    found = record.result.forgetting
    plain, tuned = models(workshop, record)
    tokenizer = AutoTokenizer.from_pretrained(workshop.folder / "models" / "llama")
    for name, model in (("before", plain), ("after", tuned)):
        assert getattr(found, name) == pytest.approx(losses(model, tokenizer, text), rel=1e-5), name
    layers, whole = csd(plain, tuned, list(found.csd_rel_layers), tokenizer, text)
    assert found.csd_rel_layers == pytest.approx(layers, rel=1e-4) and len(layers) == 14
    assert found.csd_rel == pytest.approx(whole, rel=1e-4)
    assert found.tokens == 90 * 12 and found.seconds > 0 and found.source == str(text)
    if method == "none":
        assert found.before == found.after and found.csd_rel == 0
    else:
        assert found.before != found.after and whole > 1e-6
    assert not list(record.folder.rglob("*.tmp")), "the originals are gone"


@pytest.mark.parametrize("method", ["row_sft", "full"])
def test_the_run_is_the_same_but_for_its_id(workshop, tmp_path, text, method):
    plain = go(workshop, tmp_path / "plain", f"method={method}")
    record = go(workshop, tmp_path / "asked", f"method={method}", *asked(text))
    assert record.id != plain.id and plain.result.forgetting.csd_rel is None
    for name in ("adapter", "predictions"):
        files = sorted(record.file(name).rglob("*.safetensors")) or [record.file(name)]
        others = sorted(plain.file(name).rglob("*.safetensors")) or [plain.file(name)]
        assert [path.read_bytes() for path in files] == [path.read_bytes() for path in others]
    ours, theirs = (each.result.memory.train.peak_allocated_bytes for each in (record, plain))
    assert ours == theirs
    off = run_spec(compose([*workshop.overrides("llama"), "trainer.forgetting.max_length=9"]))
    assert off.run_id == run_spec(compose(workshop.overrides("llama"))).run_id, "without a text nothing reads its keys"


def test_the_text_counts_by_its_content(workshop, tmp_path, text):
    copy_of, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    copy_of.write_bytes(text.read_bytes())
    other.write_text("w1 w2 w3\n")
    ids = [run_spec(compose([*workshop.overrides("llama"), *asked(path)])).run_id for path in (text, copy_of, other)]
    assert ids[0] == ids[1] != ids[2]


def test_the_packaged_text_and_splits_of_a_folder_are_read(workshop, tmp_path):
    def made(path, **changes):
        settings = {"config": None, "revision": None, "split": "test", "column": "text", "documents": "lines"}
        text = GeneralText(**{"path": str(path), **settings, "max_length": 24, "stride": None, "limit": 3, **changes})
        text.read()
        return text

    packaged = made(python_reference.NAME)
    assert [example["id"] for example in packaged.examples] == sorted(topics)[:3]
    for example in packaged.examples:
        assert example["text"] == topics[example["id"]].strip() + "\n"
    spec = run_spec(compose([*workshop.overrides("llama"), *asked(python_reference.NAME)]))
    assert len(spec.config["revisions"]["data"]["trainer.forgetting.path"]) == 64
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split} one\n{split} two\n")
    assert [example["text"] for example in made(tmp_path).examples] == ["test one\ntest two\n"]
    rows = made(tmp_path, split="train", documents="rows", limit=1)
    assert [example["text"] for example in rows.examples] == ["train one\n"]
    assert "no such split" in refusal(lambda: made(tmp_path, split="validation"))


def test_what_cannot_be_measured_is_refused_before_training(workshop, tmp_path, text):
    def said(*overrides, family="llama"):
        return refusal(lambda: go(workshop, tmp_path, *overrides, family=family))

    wrong = said(*asked(text), family="bert")
    assert "measured on causal language models" in wrong and "trainer.forgetting.path" in wrong
    assert "no such file" in said(*asked(tmp_path / "none.txt"))
    assert "has 64 positions" in said(*asked(text), "trainer.forgetting.max_length=65")
    assert "trainer.forgetting.stride=24" in said(*asked(text), "trainer.forgetting.stride=24")
    assert "trainer.forgetting.revision" in said(*asked(text), "trainer.forgetting.revision=main")
    assert "trainer.strategy=fsdp" in said(*asked(text), "trainer=fsdp", "trainer.processes=2")
    (tmp_path / "blank.txt").write_text("\n\n")
    assert "no text" in said(*asked(tmp_path / "blank.txt"))
    assert not Store(tmp_path).runs()
