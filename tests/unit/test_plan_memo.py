"""Shapes worked out once: what comes again is what torch works out, and nothing that shares memory is made anew."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rowsft.plan.cost import Costs
from rowsft.plan.memo import Memo

aten = torch.ops.aten


def meta(*shape, **kwargs):
    return torch.empty(*shape, device="meta", **kwargs)


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.mm.default, (meta(3, 4), meta(4, 5))),
        (aten.add.Tensor, (meta(3, 1), meta(1, 4, dtype=torch.bfloat16))),
        (aten.sum.dim_IntList, (meta(3, 4), [0])),
        (aten.native_layer_norm.default, (meta(2, 8), [8], meta(8), meta(8), 1e-5)),
        (aten.mm.default, (meta(4, 3).t(), meta(4, 5))),
        (aten.cat.default, ([meta(2, 3), meta(4, 3)],)),
    ],
    ids=str,
)
def test_what_comes_again_is_alike(func, args):
    memo, calls = Memo(), []

    def compute():
        calls.append(func)
        return func(*args)

    first, second = (memo(func, args, {}, compute) for _ in range(2))
    assert len(calls) == 1
    pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
    for one, other in pairs:
        assert (one.shape, one.stride(), one.dtype, one.device) == (
            other.shape,
            other.stride(),
            other.dtype,
            other.device,
        )
        assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()
        assert one.untyped_storage()._cdata != other.untyped_storage()._cdata


def test_numbers_that_are_equal_and_unlike_are_told_apart():
    memo = Memo()
    ids = meta(4, dtype=torch.int64)
    kinds = [memo(aten.mul.Tensor, (ids, by), {}, lambda by=by: aten.mul.Tensor(ids, by)).dtype for by in (2, 2.0, 2)]
    assert kinds == [torch.int64, torch.float32, torch.int64]


def test_what_is_written_to_stays_and_views_share():
    memo = Memo()
    target, other = meta(3, 4), meta(3, 4)
    for _ in range(2):
        assert memo(aten.add_.Tensor, (target, other), {}, lambda: aten.add_.Tensor(target, other)) is target
    with FakeTensorMode():
        fake = torch.empty(3, 4)
    for _ in range(2):
        view = memo(aten.t.default, (fake,), {}, lambda: aten.t.default(fake))
        assert (view.shape, view.stride(), view.device) == ((4, 3), (1, 4), torch.device("cpu"))
        assert view.untyped_storage()._cdata == fake.untyped_storage()._cdata


def test_asking_a_tensor_where_it_is_moves_nothing():
    with FakeTensorMode() as mode:
        fake = torch.empty(1000)
    with mode, Costs() as costs:
        assert fake.device.type == "cpu"
        fake.add(1)
    assert costs.bytes_moved == 2 * fake.nbytes
