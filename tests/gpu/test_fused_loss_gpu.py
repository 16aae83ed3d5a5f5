"""trainer.fused_linear_cross_entropy on a card: the losses of the plain loss, in less memory."""

import pytest
import torch
from tiny import causal_batch, tiny_llama

pytest.importorskip("omegaconf", reason="needs omegaconf: rowsft.runner")
pytest.importorskip("liger_kernel", reason="needs liger-kernel: pip install '.[lean]'")

from rowsft.config.settings import TrainerSettings
from rowsft.measure import StepClock
from rowsft.runner.trainer import build_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: liger-kernel's kernels"),
]


def trained(fused: bool, folder) -> tuple[list[float], int]:
    """Losses of a few steps, and the allocator's peak."""
    device = torch.device("cuda", torch.cuda.current_device())
    settings = TrainerSettings(
        steps=4, batch_size=2, learning_rate=1e-3, device="cuda", fused_linear_cross_entropy=fused
    )
    batch = causal_batch(2, 64)
    rows = [{name: value[i] for name, value in batch.items()} for i in range(2)] * 4

    def collate(examples):
        return {name: torch.stack([example[name] for example in examples]) for name in batch}

    model = tiny_llama(vocab_size=65536)
    trainer = build_trainer(
        model, rows, collate, settings, 0, StepClock(0, device), lambda row: None, folder, normalises_by_tokens=True
    )
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    return [row["loss"] for row in trainer.curve], torch.cuda.max_memory_allocated()


def test_it_trains_alike_in_less_memory(tmp_path):
    plain, plain_bytes = trained(False, tmp_path / "plain")
    fused, fused_bytes = trained(True, tmp_path / "fused")
    torch.testing.assert_close(torch.tensor(fused), torch.tensor(plain), rtol=1e-4, atol=1e-5)
    assert fused_bytes < plain_bytes
