"""Clocks against hand-computed seconds: durations are injected, nothing sleeps."""

import json

import numpy as np
import pytest
import torch
from tiny import causal_batch

from rowsft.measure import PHASES, PhaseClock, StepClock
from rowsft.record import Seconds, plain

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: steps are timed by its events")


class FakeClock:
    """Monotonic seconds that move only when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def batch(lengths: list[int], width: int) -> dict[str, torch.Tensor]:
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    return {"input_ids": torch.ones_like(mask), "attention_mask": mask}


def run_steps(clock: StepClock, fake: FakeClock, durations, batches=None, between: float = 7.0) -> None:
    for index, seconds in enumerate(durations):
        fake.now += between
        clock.start()
        if batches is not None:
            clock.count(batches[index])
        fake.now += seconds
        clock.stop()


def test_phases_add_up_and_unentered_ones_are_null():
    fake = FakeClock()
    clock = PhaseClock(clock=fake)
    for name, seconds in (("load", 2.0), ("measure", 0.5), ("train", 30.0), ("measure", 0.25)):
        fake.now += 1.0
        with clock.phase(name):
            fake.now += seconds
    expected = dict.fromkeys(PHASES) | {"load": 2.0, "measure": 0.75, "train": 30.0, "total": 36.75}
    assert plain(clock.summary()) == expected


def test_phase_that_raises_is_timed_and_named():
    fake = FakeClock()
    clock = PhaseClock(clock=fake)
    with pytest.raises(ValueError, match="boom"), clock.phase("select"):
        fake.now += 3.0
        raise ValueError("boom")
    assert clock.phase_name == "select"
    assert clock.summary().select == 3.0
    with clock.phase("train"):
        pass
    assert clock.phase_name == "train"


def test_whoever_is_told_of_a_phase_costs_it_no_time():
    fake, told = FakeClock(), []
    clock = PhaseClock(clock=fake)

    def tell(name):
        told.append(name)
        fake.now += 9.0

    clock.on_phase = tell
    for name in ("load", "train"):
        with clock.phase(name):
            fake.now += 2.0
    assert told == ["load", "train"] and (clock.summary().load, clock.summary().train) == (2.0, 2.0)


def test_phases_neither_nest_nor_take_unknown_names():
    clock = PhaseClock()
    nested = "'save' started inside phase 'train'"
    with clock.phase("train"), pytest.raises(RuntimeError, match=nested), clock.phase("save"):
        pass
    with pytest.raises(ValueError, match="'trian' is not one of data, load, select"), clock.phase("trian"):
        pass
    assert clock.summary().save is None


def test_step_statistics_match_closed_forms_and_leave_warm_up_out():
    fake = FakeClock()
    clock = StepClock(warmup_steps=2, clock=fake)
    run_steps(clock, fake, [500.0, 400.0, *range(1, 102)])
    steps = clock.summary()["step_seconds"]
    quartiles = {"min": 1.0, "p25": 26.0, "median": 51.0, "p75": 76.0, "p95": 96.0, "max": 101.0, "mean": 51.0}
    assert plain(steps) == quartiles | {"warmup_steps": 2, "timed_steps": 101}


def test_step_statistics_match_numpy_on_uneven_durations():
    fake = FakeClock()
    durations = np.random.default_rng(0).exponential(size=37).round(6)
    clock = StepClock(warmup_steps=5, clock=fake)
    run_steps(clock, fake, durations)
    steps, timed = clock.summary()["step_seconds"], durations[5:]
    quantiles = {"p25": np.quantile(timed, 0.25), "p75": np.quantile(timed, 0.75), "p95": np.quantile(timed, 0.95)}
    others = {"median": np.median(timed), "mean": timed.mean(), "min": min(timed), "max": max(timed)}
    for key, expected in (quantiles | others).items():
        assert getattr(steps, key) == pytest.approx(expected, abs=1e-9)


def test_tokens_ignore_padding_and_rate_covers_timed_steps_only():
    fake = FakeClock()
    clock = StepClock(warmup_steps=1, clock=fake)
    run_steps(clock, fake, [9.0, 2.0, 3.0], [batch([8, 8], 8), batch([5, 1, 3], 6), batch([2], 16)])
    summary = clock.summary()
    assert summary["train_tokens"] == 16 + 9 + 2
    assert summary["train_examples"] == 6
    assert summary["steps"] == 3
    assert summary["tokens_per_second"] == pytest.approx(11 / 5)


def test_several_batches_in_one_step_and_masks_of_any_dtype():
    fake = FakeClock()
    clock = StepClock(warmup_steps=0, clock=fake)
    clock.start()
    for dtype in (torch.bool, torch.uint8, torch.float32):
        padded = batch([300, 1], 300)
        clock.count({**padded, "attention_mask": padded["attention_mask"].to(dtype)})
    fake.now += 2.0
    clock.stop()
    assert clock.summary()["train_tokens"] == 3 * 301
    assert clock.summary()["tokens_per_second"] == 451.5


def test_fewer_steps_than_warm_up_gives_nulls():
    fake = FakeClock()
    clock = StepClock(warmup_steps=3, clock=fake)
    run_steps(clock, fake, [1.0, 1.0], [causal_batch(), causal_batch()])
    summary = clock.summary()
    nothing = dict.fromkeys(("min", "p25", "median", "p75", "p95", "max", "mean"))
    assert plain(summary["step_seconds"]) == nothing | {"warmup_steps": 3, "timed_steps": 0}
    assert summary["tokens_per_second"] is None
    assert summary["train_tokens"] == 2 * 16


def test_no_steps_or_no_count_gives_nulls():
    fake = FakeClock()
    clock = StepClock(warmup_steps=0, clock=fake)
    run_steps(clock, fake, [1.0])
    for summary in (StepClock(warmup_steps=0).summary(), clock.summary()):
        assert summary["train_tokens"] is None
        assert summary["train_examples"] is None
        assert summary["tokens_per_second"] is None


@pytest.mark.parametrize("mask", [None, torch.zeros(2, 1, 9, 9)])
def test_batch_whose_padding_cannot_be_told_makes_tokens_null(mask):
    fake = FakeClock()
    clock = StepClock(warmup_steps=0, clock=fake)
    unclear = {key: value for key, value in causal_batch().items() if key != "attention_mask"}
    if mask is not None:
        unclear["attention_mask"] = mask
    run_steps(clock, fake, [1.0, 1.0], [causal_batch(), unclear])
    summary = clock.summary()
    assert (summary["train_tokens"], summary["tokens_per_second"]) == (None, None)
    assert summary["train_examples"] == 4


def test_waiting_for_data_has_a_clock_of_its_own():
    fake = FakeClock()
    clock = StepClock(warmup_steps=1, clock=fake)
    assert clock.summary()["data_seconds"] is None
    for waited in (9.0, 1.0, 2.0, 6.0):
        with clock.loading_data():
            fake.now += waited
        run_steps(clock, fake, [10.0])
    summary = clock.summary()
    assert summary["data_seconds"].total == 18.0
    assert summary["data_seconds"].median == 2.0
    assert (summary["data_seconds"].min, summary["data_seconds"].max) == (1.0, 6.0)
    assert summary["step_seconds"].median == 10.0


def test_data_loaded_inside_a_step_are_refused():
    clock = StepClock(warmup_steps=0)
    clock.start()
    with pytest.raises(RuntimeError, match="inside a step"), clock.loading_data():
        pass


def test_start_stop_and_count_out_of_order_are_refused():
    clock = StepClock(warmup_steps=0)
    with pytest.raises(RuntimeError, match="without start"):
        clock.stop()
    with pytest.raises(RuntimeError, match="outside a step"):
        clock.count(causal_batch())
    clock.start()
    with pytest.raises(RuntimeError, match="while a step is running"):
        clock.start()


@pytest.mark.gpu
@GPU
def test_gpu_steps_are_timed_on_the_device_not_on_the_host():
    def never() -> float:
        raise AssertionError("host clock used")

    clock = StepClock(warmup_steps=1, device="cuda", clock=never)
    matrix = torch.randn(2048, 2048, device="cuda")
    for repeats in (1, 1, 50):
        clock.start()
        clock.count({key: value.cuda() for key, value in causal_batch().items()})
        for _ in range(repeats):
            matrix @ matrix
        clock.stop()
    summary = clock.summary()
    assert summary["step_seconds"].p95 > summary["step_seconds"].median / 2 > 0
    assert summary["train_tokens"] == 3 * 16


def test_a_clock_that_goes_on_counts_all_pieces_and_leaves_out_each_start():
    """Three steps, a restart after the second, three more: the warm-up step of both pieces is out of the statistics."""
    fake = FakeClock()
    first = StepClock(1, clock=fake)
    run_steps(first, fake, [9.0, 2.0], [batch([3, 2], 4)] * 2)
    state = json.loads(json.dumps(first.state()))
    run_steps(first, fake, [50.0], [batch([1, 1], 4)])

    second = StepClock(1, clock=fake)
    second.resume(state)
    run_steps(second, fake, [8.0, 4.0, 6.0], [batch([4, 4], 4)] * 3)
    summary = second.summary()
    assert (summary["steps"], summary["train_examples"], summary["train_tokens"]) == (5, 10, 34)
    assert summary["step_seconds"].timed_steps == 3
    assert (summary["step_seconds"].median, summary["step_seconds"].max) == (4.0, 6.0)
    assert summary["tokens_per_second"] == (5 + 16) / 12.0


def test_phases_go_on_from_an_earlier_process():
    fake = FakeClock()
    clock = PhaseClock(clock=fake)
    clock.add(Seconds(load=2.0, train=30.0, total=40.0))
    fake.now += 1.0
    with clock.phase("train"):
        fake.now += 5.0
        # Asked for inside a phase: a checkpoint holds the seconds up to it.
        assert (clock.summary().train, clock.summary().total) == (35.0, 46.0)
        fake.now += 5.0
    assert (clock.summary().load, clock.summary().train, clock.summary().total) == (2.0, 40.0, 51.0)
