"""Operations of fused attention against torch's own count, which knows no grouped heads before torch 2.12."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from rowsft.measure.flops import attention_backward_flops, attention_flops, grouped_attention

QUERY, KEY, VALUE = (2, 8, 5, 16), (2, 8, 7, 16), (2, 8, 7, 12)


def test_equal_heads_are_counted_as_torch_does():
    assert attention_flops(QUERY, KEY, VALUE) == sdpa_flop_count(QUERY, KEY, VALUE)
    gradient = (*QUERY[:3], VALUE[3])
    assert attention_backward_flops(QUERY, KEY, VALUE) == sdpa_backward_flop_count(gradient, QUERY, KEY, VALUE)


def test_grouped_heads_cost_what_the_queries_heads_cost():
    few = [(2, 2, *shape[2:]) for shape in (KEY, VALUE)]
    assert attention_flops(QUERY, *few) == attention_flops(QUERY, KEY, VALUE)
    assert attention_backward_flops(QUERY, *few) == attention_backward_flops(QUERY, KEY, VALUE)


@pytest.mark.parametrize("heads", [8, 2])
def test_the_mapping_counts_a_gpus_kernel(heads):
    with torch.device("meta"):
        query = torch.empty(2, 8, 5, 16, dtype=torch.bfloat16)
        key, value = (torch.empty(2, heads, 7, 16, dtype=torch.bfloat16) for _ in range(2))
    with FlopCounterMode(display=False, custom_mapping=grouped_attention()) as counter:
        torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
    assert counter.get_total_flops() == attention_flops(query.shape, key.shape, value.shape)
