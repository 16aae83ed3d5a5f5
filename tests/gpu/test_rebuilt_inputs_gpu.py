"""Rebuilt inputs with each of CUDA's attention kernels: the gradients of kept inputs, at less memory."""

import dataclasses

import pytest
import torch
from peft import get_peft_model
from rows import random_ids, row_layers, shake
from tiny import tiny_llama
from torch.nn.attention import SDPBackend, sdpa_kernel

from rowsft import RowSFTConfig
from rowsft.measure import AllocationPeak

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: its attention kernels"),
    pytest.mark.skipif(
        "recompute_inputs" not in {field.name for field in dataclasses.fields(RowSFTConfig)},
        reason="needs RowSFTConfig(recompute_inputs=...)",
    ),
]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Heads of 64; flash takes 16-bit only, and none of the kernels repeats key-value heads by itself.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
CUDA = torch.device("cuda")
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def tuned_llama(recompute: bool):
    model = tiny_llama(torch.bfloat16, max_position_embeddings=256, **WIDE).to(CUDA)
    model.config._attn_implementation = "sdpa"
    ids = random_ids(model, TARGETS, "rows", 16)
    config = RowSFTConfig(target_modules=TARGETS, recompute_inputs=recompute, **ids)
    tuned = get_peft_model(model, config).train()
    shake(tuned, scale=0.05)
    tuned.enable_input_require_grads()
    return tuned


def gradients(recompute: bool, kernel: SDPBackend):
    """Gradients of one step, the peak of its new allocations, and where inputs came from."""
    tuned = tuned_llama(recompute)
    ids = torch.randint(3, 128, (2, 256), generator=torch.Generator().manual_seed(0)).to(CUDA)
    with sdpa_kernel(kernel):
        tuned(input_ids=ids, labels=ids).loss.backward()
        tuned.zero_grad()
        with AllocationPeak(CUDA) as peak:
            tuned(input_ids=ids, labels=ids).loss.backward()
    found = {
        (name, kind): getattr(layer, kind)["default"].grad
        for name, layer in row_layers(tuned).items()
        for kind in ("row_sft_delta",)
    }
    return found, peak.new_peak_bytes, tuned.base_model.input_sources()


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_those_of_kept_inputs(kernel):
    try:
        kept, kept_bytes, _ = gradients(False, KERNELS[kernel])
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        pytest.skip(f"this card or torch has no {kernel} kernel for heads of 64 in bfloat16")
    rebuilt, rebuilt_bytes, sources = gradients(True, KERNELS[kernel])
    assert rebuilt.keys() == kept.keys()
    for key, gradient in kept.items():
        assert gradient.abs().max() > 0
        # Bit for bit where the kernel's own backward repeats; atomics of some do not.
        torch.testing.assert_close(rebuilt[key], gradient, rtol=2e-2, atol=2e-2 * float(gradient.abs().max()))
    assert all(text.startswith(("rebuilt", "kept")) for text in sources.values())
    first = [name for name, text in sources.items() if text.startswith("rebuilt")]
    assert any(name.endswith("down_proj") for name in first), sources
    assert any(name.endswith("q_proj") for name in first), sources
    if kernel != "math":
        assert any(name.endswith("o_proj") for name in first), sources
    assert rebuilt_bytes < kept_bytes
