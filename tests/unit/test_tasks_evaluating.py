"""What running a model over batches keeps, and for how long."""

import weakref
from types import SimpleNamespace

import torch
from torch import nn

from rowsft.tasks.evaluating import run_batches


class Recorder(nn.Module):
    """Counts how many of its earlier outputs live whenever it is called."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.outputs, self.alive = [], []

    def forward(self, input_ids):
        self.alive.append(sum(output() is not None for output in self.outputs))
        logits = input_ids * self.scale
        self.outputs.append(weakref.ref(logits))
        return SimpleNamespace(logits=logits)


def test_one_batch_is_gone_before_the_next_is_computed():
    """Two batches of logits would be the peak of evaluating a large vocabulary."""
    model = Recorder()
    encoded = [{"input_ids": [number] * 3} for number in range(6)]

    def collate(examples):
        ids = torch.tensor([example["input_ids"] for example in examples])
        return {"input_ids": ids, "labels": ids}

    found = run_batches(model, encoded, collate, 2, None, lambda output, batch: output.logits[:, 0].tolist())
    assert found == [0, 1, 2, 3, 4, 5]
    assert model.alive == [0, 0, 0]
