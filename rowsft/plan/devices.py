"""Devices by their makers' data sheets: dense operations a second, and bytes a second of memory."""

import torch

from rowsft.errors import UserError
from rowsft.plan.cost import Device


def _device(name: str, half_tflops: float, single_tflops: float, gigabytes_per_second: float) -> Device:
    half = half_tflops * 1e12
    flops = {torch.bfloat16: half, torch.float16: half, torch.float32: single_tflops * 1e12}
    return Device(name, flops, gigabytes_per_second * 1e9)


# 16-bit with 32-bit sums on tensor cores and without sparsity; 32-bit without TF32, which torch leaves off.
DEVICES = {
    device.name: device
    for device in (
        _device("L4", 121, 30.3, 300),
        _device("RTX 4090", 165, 82.6, 1008),
        _device("L40S", 362, 91.6, 864),
        _device("A100 80GB", 312, 19.5, 2039),
        _device("H100 SXM", 989, 67, 3350),
        _device("H200", 989, 67, 4800),
    )
}


def device(name: str) -> Device:
    """The device called `name`, in any case. Raises UserError with the names."""
    for known in DEVICES.values():
        if known.name.lower() == name.lower():
            return known
    raise UserError(f"--device {name}: not known; its speed cannot be told. Known: {', '.join(DEVICES)}")
