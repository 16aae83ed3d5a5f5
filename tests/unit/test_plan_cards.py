"""Which cards hold a run, and what to do where one does not."""

import json
import re
import subprocess
import sys

import pytest
from planning import SMALL

from rowsft.config.compose import compose
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.plan import plan
from rowsft.plan.advice import lighter_evaluation, memory_suggestions, too_large
from rowsft.plan.fit import MIB, Card, Demand, card_of


def test_a_card_holds_tensors_margin_and_context():
    assert Demand(1000 * MIB).card_bytes == (1050 + 1024) * MIB
    assert all(Demand(10_000 * MIB).cards().values())
    # 15,700 MiB of tensors, 785 of margin, 1,024 of context.
    held = Demand(15_700 * MIB)
    assert held.fits(Card("just", 17_509 * MIB))
    assert not held.fits(Card("less", 17_508 * MIB))
    assert (held.cards()["T4"], held.cards()["RTX 4090"]) == (False, True)


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("24", 24_564),
        ("24.0", 24_564),
        ("80", 81_559),
        ("RTX 4090", 24_564),
        ("l4", 23_034),
        ("H200", 143_771),
        ("A100 40GB", 40_960),
        ("h100", 81_559),
        ("A100-80", 81_920),
        ("4090", 24_564),
        ("NVIDIA GeForce RTX 3090", 24_576),
        ("Tesla T4", 15_360),
        ("a10", 23_028),
        # As nvidia-smi names them.
        ("NVIDIA H100 80GB HBM3", 81_559),
        ("NVIDIA H100 PCIe", 81_559),
        ("NVIDIA A100-SXM4-80GB", 81_920),
        ("NVIDIA A100-SXM4-40GB", 40_960),
        ("NVIDIA A100 80GB PCIe", 81_920),
        ("NVIDIA A100-PCIE-40GB", 40_960),
        ("Tesla V100-SXM2-32GB", 32_768),
        ("Tesla V100-PCIE-16GB", 16_384),
        ("NVIDIA GeForce RTX 4090", 24_564),
        ("NVIDIA RTX 6000 Ada Generation", 49_140),
        ("NVIDIA L40S", 46_068),
        ("24GB", 24_564),
        ("24 GiB", 24_576),
        # No card is sold as that: GiB.
        ("1.5", 1536),
        ("20", 20_480),
    ],
)
def test_a_card_has_what_it_reports(text, mib):
    assert card_of(text).memory_bytes == mib * MIB


@pytest.mark.parametrize(
    "text", ["0", "-3", "nan", "inf", "1e9", "RTX", "", "24GB x", "3060", "H1", "24,5", "NVIDIA H100 NVL"]
)
def test_a_card_of_no_size_is_refused(text):
    with pytest.raises(UserError, match=r"--card .*: expected the card's memory in GB, such as 24, or its name: T4, "):
        card_of(text)


def test_a_card_of_two_sizes_is_asked_which():
    with pytest.raises(UserError, match="--card a100: is sold as A100 40GB and A100 80GB; name one of them"):
        card_of("a100")


def test_ways_out_end_with_what_fits():
    config = compose([*SMALL, "trainer.device=auto", "trainer.batch_size=64", "task.max_length=128", "method=full"])
    settings = trainer_settings(config)

    def again(changes):
        return plan(config, settings, changes)

    whole = again({})
    card = Card("between", (whole.demand.card_bytes + again({"batch_size": 1}).demand.card_bytes) // 2)
    lines = memory_suggestions(whole, again, card)
    assert lines[0].startswith("trainer.gradient_checkpointing=true: needs")
    assert " MiB" in lines[0] and " GB" not in lines[0]
    assert lines[-1].endswith("fits between")
    hopeless = memory_suggestions(whole, again, Card("tiny", 2**30))
    assert "trained weights and their optimizer state: train fewer" in hopeless[-1]


def test_the_stage_that_does_not_fit_is_named_with_what_helps():
    given = [*SMALL, "trainer.device=auto", "trainer.batch_size=1", "trainer.eval_batch_size=64", "task.max_length=128"]
    config = compose([*given, "method=lora"])
    settings = trainer_settings(config)

    def again(changes):
        return plan(config, settings, changes)

    whole = again({})
    demands = whole.demands
    assert list(demands) == ["training", "evaluating"]
    assert demands["training"].tensor_bytes == whole.peak_bytes < demands["evaluating"].tensor_bytes
    card = Card("between", (demands["training"].card_bytes + demands["evaluating"].card_bytes) // 2)
    said = too_large(whole, card)
    assert "evaluating needs" in said and "training needs" not in said and "training: fits" in said
    line = lighter_evaluation(whole, again)
    fewer = int(re.search(r"trainer\.eval_batch_size=(\d+) changes no result", line)[1])
    light, more = (again({"eval_batch_size": count}).evaluation_bytes for count in (fewer, 2 * fewer))
    assert light <= whole.peak_bytes < more
    assert lighter_evaluation(again({"eval_batch_size": 1}), again) is None


def test_llama3_8b_for_programs_in_little_memory(tmp_path):
    """The command as users type it: JSON alone on standard output, and no weight of 16 GB anywhere."""
    overrides = ["model=llama3_8b", "method=row_sft", "budget.rows=128", "task=prompt_response", "trainer.batch_size=1"]
    # VmHWM is this process's own; ru_maxrss starts at what the parent had when it forked.
    measured = "import sys; from rowsft.cli import main as cli\n"
    measured += "try: cli.main(sys.argv[1:])\n"
    measured += "finally: print([l.split()[1] for l in open('/proc/self/status') if 'VmHWM' in l][0], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", measured, "plan", *overrides, "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["trainable_parameters"] == 128 * 1_245_184
    assert told["total_parameters"] == 8_030_261_248
    assert told["parts"]["base_weights"] >= 2 * 8_030_261_248
    assert told["peak_bytes"] == sum(told["parts"].values())
    assert told["cards"]["H100 80GB"] == {"memory_bytes": 81_559 * MIB, "fits": True}
    assert not told["cards"]["V100 16GB"]["fits"]
    needed = told["card_bytes_needed_by_stage"]
    assert needed["training"] < 24_564 * MIB < needed["evaluating"] == told["card_bytes_needed"]
    assert (told["lengths"]["source"], told["length_tokens"]) == ("assumed", 512)
    assert told["phases"]["forward"]["parts"]["gradients"] == 0
    most_kib = int(done.stderr.splitlines()[-1])
    assert most_kib < 2 * 2**20
