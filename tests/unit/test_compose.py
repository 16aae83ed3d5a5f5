"""Configurations: every one composes and builds; a wrong name is one line that lists the right ones."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from refusals import refusal

from rowsft.config.compose import compose
from rowsft.config.names import options
from rowsft.config.overrides import quoted
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.config_folders import SHIPPED, names
from rowsft.errors import UserError
from rowsft.selection.budget import Budget

#: Files that set another one's channel, so that a sweep can hold both.
CHANNELS = {"row_sft_both": "both", "row_sft_columns": "columns", "row_sft_neurons": "neurons"}
METHODS = {"row_sft", *CHANNELS, "lora", "dora", "shira", "full", "head", "none"}
METHODS |= {"lora_regret", "rslora", "pissa", "olora", "cla", "hira", "miss", "oft"}
METHODS |= {"vera", "ia3", "bitfit", "ln_tuning", "supertuning"}
#: Files that set another one's start, for the same reason: file -> the same by hand.
STARTS = {
    "row_sft_zero": ["method=row_sft", "method.quantised_start=zero"],
    "loftq_pissa": ["method=loftq", "method.start=pissa"],
}
METHODS |= {"loftq", *STARTS}
METHODS |= {"lora_plus", "lora_fa", "adalora", "lisa", "galore"}
MODELS = {
    *("minilm", "smollm2_135m", "llama2_7b", "llama3_8b", "mistral_7b", "gemma_7b"),
    *("llama3_2_1b", "qwen2_5_1_5b", "qwen3_1_7b", "gemma2_2b", "gemma3_1b", "smollm3_3b", "phi2", "phi4_mini"),
    *("bert_base", "bert_large", "roberta_base", "deberta_base", "deberta_v3_base", "deberta_v3_large"),
    *("vit_base", "deit_base", "dinov2_small", "dinov2_base", "vits_focus", "vits_random"),
}
GLUE = {f"glue/{name}" for name in ("cola", "mnli", "mnli_mismatched", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")}
COMMONSENSE = {
    *("boolq", "piqa", "social_iqa", "hellaswag", "winogrande"),
    *("arc_easy", "arc_challenge", "openbookqa", "rte", "mix"),
}
TASKS = {
    *("sentiment", "social_iqa", "text_classification", "prompt_response", "multiple_choice"),
    *("language_modelling", "wikitext2", *GLUE),
    *(f"commonsense/{name}" for name in COMMONSENSE),
    *(f"images/{name}" for name in ("folder", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "caltech101")),
    *("alpaca", "alpaca_gpt4", "gsm8k"),
}
METHODS |= {"paca", "rocoft", "rocoft_columns", "s2ft", "grft", "neft"}
METHODS |= {"entries", "neuroada", "gps", "sparta", "lift", "rosa_mask"}
GROUPS = ("method", "model", "task", "budget", "trainer", "tracker", "experiment", "debug")


def test_promised_names_exist():
    assert set(options("method")) == METHODS
    assert set(options("model")) == MODELS
    assert set(options("task")) == TASKS
    assert {"bf16", "checkpointing"} <= set(options("trainer"))
    assert {"none", "wandb"} <= set(options("tracker"))


def test_every_yaml_is_reachable():
    files = {
        f"{path.relative_to(SHIPPED).parts[0]}={'/'.join(path.relative_to(SHIPPED).with_suffix('').parts[1:])}"
        for path in SHIPPED.rglob("*.yaml")
        if path.parent != SHIPPED and "hydra" not in path.relative_to(SHIPPED).parts
    }
    chosen = {f"{group}={name}" for group in GROUPS for name in options(group)}
    assert chosen < files and all("=_" in name or "/_" in name for name in files - chosen)


def test_a_file_that_others_build_on_is_neither_listed_nor_chosen():
    assert (SHIPPED / "model" / "_base.yaml").is_file()
    assert not [name for name in [*options("model"), *names("model")] if name.startswith("_")]
    assert "no such model" in refusal(compose, ["model=_base"])


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in options(group)])
def test_every_option_composes_and_builds(choice):
    config = compose([choice])
    trainer_settings(config)
    Budget(**config.budget)
    # What a file leaves to be named.
    named = {"changed": "a/checkpoint"} if choice == "method=neft" else {}
    assert instantiate(config.method, **named) is not None
    for part in (config.task, config.tracker):
        assert instantiate(part) is not None
    assert len(run_spec(config).run_id) == 12


@pytest.mark.parametrize(("method", "model"), product(sorted(METHODS - {*CHANNELS, *STARTS}), ["minilm", "llama3_8b"]))
def test_names_in_config_match_their_file(method, model):
    config = compose([f"method={method}", f"model={model}"])
    assert (config.method.name, config.model.name) == (method, model)


@pytest.mark.parametrize(("method", "channel"), CHANNELS.items())
def test_a_file_that_sets_a_channel_makes_the_run_of_that_channel(method, channel):
    by_hand = run_spec(compose(["method=row_sft", f"method.channel={channel}"]))
    assert run_spec(compose([f"method={method}"])).run_id == by_hand.run_id


@pytest.mark.parametrize(("method", "by_hand"), STARTS.items())
def test_a_file_that_sets_a_start_makes_the_run_of_that_start(method, by_hand):
    on_a_quantised_base = ["model=smollm2_135m", "model.quantize=nf4"]
    run = run_spec(compose([f"method={method}", *on_a_quantised_base]))
    assert run.run_id == run_spec(compose([*by_hand, *on_a_quantised_base])).run_id
    assert run.run_id != run_spec(compose([by_hand[0], *on_a_quantised_base])).run_id


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method=lorra", ["method=lorra", "lora", "row_sft"]),
        ("task=glue/sstb", ["task=glue/sstb", "glue/stsb"]),
        ("mehtod=lora", ["mehtod", "method"]),
        ("trainer.lr=1", ["trainer.lr", "learning_rate"]),
        ("trainer.learning_rat=1", ["did you mean trainer.learning_rate?"]),
        ("budget.row=3", ["budget.row", "rows"]),
        ("experiment=quikstart", ["quickstart"]),
        ("method=lora,dorra", ["dorra", "dora"]),
        ("model=", ["model"]),
    ],
)
def test_wrong_name_is_one_line_with_the_right_ones(override, said):
    message = refusal(compose, [override])
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.steps=0", "trainer.steps=0"),
        ("trainer.steps=many", "trainer.steps"),
        ("trainer.learning_rate=-1", "trainer.learning_rate=-1"),
        ("trainer.scheduler=stairs", "constant, linear, cosine, step_epoch"),
        ("trainer.evaluate=[testing]", "validation"),
        ("trainer.epochs=2", "trainer.epochs=2"),
        ("trainer.autocast=int8", "bf16"),
        ("trainer.device=tpu", "cuda"),
    ],
)
def test_wrong_setting_names_key_and_expectation(override, said):
    assert said in refusal(lambda: trainer_settings(compose([override])))


def test_tuned_rate_holds_unless_the_command_says_otherwise():
    overrides = ["method=lora", "+tuned.learning_rate.lora=0.5", "+tuned.learning_rate.full=0.25"]
    assert compose(overrides).trainer.learning_rate == 0.5
    assert compose([*overrides, "trainer.learning_rate=0.1"]).trainer.learning_rate == 0.1
    # Another method's tuned rate is no part of this run.
    other = [*overrides[:2], "+tuned.learning_rate.full=0.125"]
    assert run_spec(compose(overrides)).run_id == run_spec(compose(other)).run_id


def test_identity_ignores_presentation_and_sees_everything_else(tmp_path):
    base = run_spec(compose([])).run_id
    same = ["store=elsewhere", "experiment_name=other", "tracker=wandb"]
    assert [run_spec(compose([text])).run_id for text in same] == [base] * 3
    different = ["seed=1", "trainer.steps=151", "method=lora", "model.dtype=bfloat16", "budget.rows=3"]
    assert len({base, *(run_spec(compose([text])).run_id for text in different)}) == 6


def test_edited_data_file_is_another_run(tmp_path):
    data = tmp_path / "rows.csv"
    overrides = ["task=text_classification", f"task.data.path={data}"]
    data.write_text("text,label\na,0\n")
    before = run_spec(compose(overrides)).run_id
    assert run_spec(compose(overrides)).run_id == before
    data.write_text("text,label\nb,0\n")
    assert run_spec(compose(overrides)).run_id != before


def test_composing_leaves_hydras_one_instance_as_it_was():
    compose([])
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(SHIPPED), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        compose([])
        with pytest.raises(UserError):
            compose(["method=lorra"])
        assert GlobalHydra.instance().hydra is outer


def test_composing_imports_no_torch():
    code = (
        "import sys\n"
        "from rowsft.config.compose import compose\n"
        "from rowsft.config.run_spec import run_spec\n"
        "run_spec(compose(['experiment=quickstart', 'method=lora']))\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("method.importance=lowest(taylor)", "method.importance='lowest(taylor)'"),
        ("method.importance=l1,lowest(taylor),random", "method.importance=l1,'lowest(taylor)',random"),
        ("method.importance=labelwise(taylor,max),l1", "method.importance='labelwise(taylor,max)',l1"),
        ("task.data.path=~/mine.csv", "task.data.path='~/mine.csv'"),
        # What Hydra reads by itself stays as it is, and so does what cannot be mended.
        ("seed=choice(1,2)", "seed=choice(1,2)"),
        ("budget.like={method:lora,r:8}", "budget.like={method:lora,r:8}"),
        ("trainer.evaluate=[test", "trainer.evaluate=[test"),
    ],
)
def test_values_that_hydra_cannot_read_bare_are_quoted(typed, read):
    assert quoted([typed]) == [read]


def test_a_metric_of_a_metric_needs_no_quotes_on_the_command_line():
    assert compose(["method.importance=lowest(taylor)"]).method.importance == "lowest(taylor)"


@pytest.mark.parametrize("experiment", options("experiment"))
def test_what_an_experiment_says_of_itself_is_sentences(experiment):
    """A colon inside an unquoted sentence makes a mapping of it, which the report would print as one."""
    config = OmegaConf.to_container(compose([f"experiment={experiment}"]))
    demonstration, fairness = config["demonstration"] or {}, config["fairness"] or {}
    for sentence in [*demonstration.get("notes", []), *fairness.values()]:
        assert isinstance(sentence, str)
