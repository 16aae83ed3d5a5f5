"""The ledger of tensor memory: sizes in closed form, parts by what a storage was for."""

from itertools import groupby

import torch
from torch import nn

from rowsft.measure import AllocationPeak
from rowsft.measure.breakdown import entered
from rowsft.measure.ledger import Ledger, Moment
from rowsft.tasks.answer_score import read_scores

ROWS, WIDTH, HIDDEN = 6, 8, 16
FLOAT = 4


def two_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN, bias=False), nn.Tanh(), nn.Linear(HIDDEN, 1, bias=False))
    model[0].weight.requires_grad_(False)
    return model


def test_a_step_in_closed_form():
    model = two_layers()
    optimizer = torch.optim.SGD([model[2].weight], lr=0.1, momentum=0.9, foreach=False)
    x = torch.randn(ROWS, WIDTH)
    model(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with Ledger() as ledger:
        ledger.hold_model(model, optimizer)
        ledger.hold("temporary", [x])
        ledger.watch_gradients(model)
        model(x).sum().backward()
        ledger.phase = "optimizer_step"
        optimizer.step()
    peaks = ledger.peaks()
    assert list(peaks) == ["forward", "backward", "optimizer_step"]
    for moment in peaks.values():
        assert moment.parts["base_weights"] == WIDTH * HIDDEN * FLOAT
        assert moment.parts["trainable_weights"] == moment.parts["optimizer_state"] == HIDDEN * FLOAT
        assert sum(moment.parts.values()) == moment.total
    # tanh's output is all that the second weight's gradient needs; the loss and the one it starts from stand beside it.
    assert peaks["backward"].parts["saved_activations"] == (ROWS * HIDDEN + 2) * FLOAT
    assert peaks["optimizer_step"].parts["gradients"] == HIDDEN * FLOAT
    assert peaks["optimizer_step"].parts["saved_activations"] == 0
    # The product and its tanh live side by side for a moment.
    assert peaks["forward"].parts["temporary"] == (ROWS * WIDTH + ROWS * HIDDEN) * FLOAT


def test_the_meta_device_gives_the_same_ledger():
    ledgers = []
    for device in ("cpu", "meta"):
        model, x = two_layers().to(device), torch.randn(ROWS, WIDTH).to(device)
        with Ledger() as ledger:
            ledger.hold_model(model)
            ledger.watch_gradients(model)
            model(x).sum().backward()
        ledgers.append([(moment.phase, moment.parts) for moment in ledger.moments()])
    assert ledgers[0] == ledgers[1]


def test_sizes_are_rounded_up_to_blocks():
    with Ledger(block_bytes=512) as ledger:
        kept = [torch.empty(1, device="meta"), torch.empty(129, device="meta"), torch.empty(9, device="cpu")]
        ledger.hold("base_weights", kept)
    # What lies on the host is none of the device's.
    assert [entry.size for entry in ledger.entries] == [512, 1024]


def test_views_are_no_storages_of_their_own():
    with Ledger() as ledger:
        tensor = torch.zeros(4, 4)
        views = tensor.t(), tensor[1:], tensor.view(16), tensor.add_(1)
    assert len(ledger.entries) == 1
    assert len(views) == 4


def test_what_recomputation_makes_is_saved():
    model = two_layers()
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with Ledger() as ledger:
        ledger.hold_model(model)
        out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
        out.sum().backward()
    saved = {moment.phase: moment.parts["saved_activations"] for moment in ledger.peaks().values()}
    assert saved["backward"] >= ROWS * HIDDEN * FLOAT
    # The forward pass leaves its output, the loss and the random state behind, no activation of what is checkpointed.
    assert saved["forward"] <= 2 * ROWS * FLOAT + torch.get_rng_state().nbytes


def test_answers_are_read_with_every_byte_in_the_ledger():
    """logsumexp subtracts the largest logits in buffers of its own: for these, and for as much as the logits take."""
    logits, targets = torch.randn(4, 9, 50), torch.randint(0, 50, (4, 9))
    with AllocationPeak("cpu") as peak:
        read_scores(logits, targets)
    with Ledger() as ledger:
        ledger.hold("temporary", [logits, targets])
        ledger.begin()
        read_scores(logits, targets)
    [moment] = ledger.peaks().values()
    given = logits.nbytes + targets.nbytes
    assert peak.new_peak_bytes >= logits.nbytes
    assert moment.total - given == peak.new_peak_bytes


def test_what_follows_a_backward_pass_is_no_forwards():
    model, x = two_layers(), torch.randn(ROWS, WIDTH)
    with Ledger() as ledger:
        ledger.watch_gradients(model)
        model(x).sum().backward()
        after = torch.empty(1000)
        ledger.phase = "forward"
        again = model(x)
    assert len(after) and len(again)
    stretches = [phase for phase, _ in groupby(moment.phase for moment in ledger.moments())]
    assert stretches == ["forward", "backward", "forward"]
    first = next(moment for moment in ledger.moments() if moment.phase == "forward")
    assert first.parts["gradients"] == 0
    # Of a second micro-batch: the first one's gradients are there while it goes forward.
    assert ledger.peaks()["forward"].parts["gradients"] == HIDDEN * FLOAT


def test_parts_that_claim_more_than_there_was_are_seen():
    moment = Moment("load", {"base_weights": 100})
    assert entered(moment, 90).unattributed_bytes == -10
    assert entered(moment, 130).unattributed_bytes == 30
    assert entered(moment, None).unattributed_bytes is None
