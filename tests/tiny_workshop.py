"""A tiny model of each family saved as a local folder, with a tokenizer, and data files to train it on."""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tiny import PAD, VOCAB, tiny_bert, tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rowsft.store import Record, Store

WORDS = [f"w{number}" for number in range(VOCAB - 5)]


@dataclass
class Workshop:
    """A folder with models/{llama,bert}, data/{pairs,texts}.jsonl and a store; `rowsft` runs the command line in it."""

    folder: Path

    def overrides(self, family: str) -> list[str]:
        """What makes a run use the tiny model of a family and its data."""
        model = {"llama": "llama2_7b", "bert": "bert_base"}[family]
        task = {"llama": "prompt_response", "bert": "text_classification"}[family]
        data = {"llama": "pairs", "bert": "texts"}[family]
        return [
            f"model={model}",
            f"model.source={self.folder / 'models' / family}",
            "model.dtype=float32",
            f"task={task}",
            f"task.data.path={self.folder / 'data' / data}.jsonl",
            "task.max_length=64",
            f"store={self.folder / 'runs'}",
            "trainer.steps=6",
            "trainer.batch_size=4",
            "trainer.learning_rate=0.003",
            "trainer.device=cpu",
            "trainer.calibration_batches=2",
            "trainer.timing_warmup_steps=1",
            "trainer.memory_probe_steps=1",
            "budget.rows=3",
        ]

    def rowsft(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run the command line in a process of its own, in this folder."""
        return subprocess.run(
            [sys.executable, "-m", "rowsft.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )


def build_workshop(folder: Path) -> Workshop:
    """Fill `folder` with the tiny models and their data."""
    for family, model in (("llama", tiny_llama()), ("bert", tiny_bert(num_labels=2))):
        model.save_pretrained(folder / "models" / family)
        tokenizer(family).save_pretrained(folder / "models" / family)
    (folder / "data").mkdir()
    draw = random.Random(0)
    # Lengths differ, so that padding and the weighting of tokens matter.
    pairs = [{"prompt": _words(draw, 3, 9), "response": _words(draw, 1, 6)} for _ in range(60)]
    texts = [{"text": _words(draw, 3, 12), "label": draw.choice(["bad", "good"])} for _ in range(60)]
    for name, rows in (("pairs", pairs), ("texts", texts)):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Workshop(folder)


def only_run(workshop: Workshop, experiment: str) -> Record:
    """The record of the one run of an experiment."""
    (record,) = Store(workshop.folder / "runs").runs(experiment)
    return record


def last_line(done: subprocess.CompletedProcess) -> str:
    """What a command printed last."""
    return done.stdout.strip().splitlines()[-1]


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    assert vocabulary["<pad>"] == PAD
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # BERT's own tells the texts of a pair apart.
    gives = ["input_ids", *(["token_type_ids"] if family == "bert" else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=gives,
    )


def _words(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))
