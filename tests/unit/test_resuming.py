"""What goes into a checkpoint and comes out of it, and what becomes of a run that ended without a result."""

import pytest
import torch
from torch import nn

from rowsft.config.retrying import Retry, retry_policy
from rowsft.errors import UserError
from rowsft.runner.checkpoints import Changes
from rowsft.store import checkpoints


class Net(nn.Module):
    """A frozen layer, a trained one whose weight is a view, running statistics, and the indices of chosen rows."""

    def __init__(self, rows=(1, 2)):
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 2)
        self.head.weight = nn.Parameter(torch.arange(80.0).view(10, 8)[:2, ::2])
        self.norm = nn.BatchNorm1d(2).requires_grad_(False)
        self.register_buffer("rows", torch.tensor(rows))
        self.register_buffer("angles", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.norm(self.head(self.base(x)))


def trained():
    torch.manual_seed(0)
    net = Net()
    changes = Changes(net)
    optimizer = torch.optim.SGD(net.head.parameters(), 0.1)
    for _ in range(3):
        net(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return net, changes


def test_what_training_changed_comes_back_and_nothing_else_is_written(tmp_path):
    net, changes = trained()
    changes.write(tmp_path)
    other = Net()
    with torch.no_grad():
        other.base.weight.fill_(7.0)
    Changes(other).read(tmp_path)
    for name in ("head.weight", "head.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(other.state_dict()[name], net.state_dict()[name]), name
    assert (other.base.weight == 7).all()
    assert (tmp_path / "trained.safetensors").stat().st_size < 4 * (8 + 2 + 2 + 2 + 2) + 700


def test_a_buffer_that_the_model_makes_anew_comes_back_in_its_new_shape(tmp_path):
    net, changes = trained()
    net.angles = torch.arange(7.0)
    changes.write(tmp_path)
    other = Net()
    Changes(other).read(tmp_path)
    assert torch.equal(other.angles, torch.arange(7.0)) and "angles" not in other.state_dict()


def test_another_trainable_set_has_another_digest(tmp_path):
    digest = Changes(Net()).digest
    assert Changes(Net()).digest == digest
    assert Changes(Net(rows=(1, 3))).digest != digest
    frozen, wider = Net(), Net()
    frozen.head.bias.requires_grad_(False)
    wider.head = nn.Linear(4, 3)
    halved = Net()
    halved.head.half()
    assert len({digest, *(Changes(net).digest for net in (frozen, wider, halved))}) == 4


def test_what_is_frozen_after_the_first_step_is_written_and_read(tmp_path):
    net, changes = trained()
    net.head.bias.requires_grad_(False)
    changes.write(tmp_path)
    other = Net()
    after = Changes(other)
    other.head.bias.requires_grad_(False)
    after.read(tmp_path)
    assert torch.equal(other.head.bias, net.head.bias) and not torch.equal(net.head.bias, Net().head.bias)


def test_weights_of_another_model_are_not_taken(tmp_path):
    net, _ = trained()
    net.head.bias.requires_grad_(False)
    Changes(net).write(tmp_path)
    with pytest.raises(RuntimeError, match=r"lacks head\.bias"):
        Changes(Net()).read(tmp_path)


def test_the_latest_checkpoint_alone_is_kept(tmp_path):
    for attempt, step in ((1, 9), (1, 10), (2, 8)):
        written = tmp_path / "scratch" / f"checkpoint-{step}"
        written.mkdir(parents=True)
        (written / "part").write_text("x")
        (tmp_path / f"attempt-{attempt}").mkdir(exist_ok=True)
        kept = checkpoints.keep(written, tmp_path / f"attempt-{attempt}")
        assert checkpoints.of_run(tmp_path) == [kept] and (kept / "part").read_text() == "x"
    (tmp_path / "attempt-10" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "attempt-10" / "checkpoint-x").mkdir()
    names = [str(path.relative_to(tmp_path)) for path in checkpoints.of_run(tmp_path)]
    assert names == ["attempt-10/checkpoint-3", "attempt-2/checkpoint-8"]
    checkpoints.remove_all(tmp_path)
    assert checkpoints.of_run(tmp_path) == []


@pytest.mark.parametrize(
    ("given", "interrupted", "failed", "oom"),
    [
        ({}, "resume", "start", "start"),
        ({"retry": "interrupted"}, "resume", "leave", "leave"),
        ({"retry": ["failed", "oom"]}, "leave", "start", "start"),
        ({"retry": "oom", "resume_errored": True}, "leave", "leave", "resume"),
        ({"resume_unfinished": False}, "leave", "start", "start"),
        ({"restart_errored": False}, "resume", "leave", "leave"),
        # Ray Tune's rule: resuming goes before starting anew.
        ({"restart_errored": True, "resume_errored": True}, "resume", "resume", "resume"),
        ({"restart_errored": False, "resume_errored": True}, "resume", "resume", "resume"),
    ],
)
def test_what_becomes_of_a_run_without_a_result(given, interrupted, failed, oom):
    retry = retry_policy(given)
    assert [retry.action(state) for state in ("interrupted", "failed", "oom")] == [interrupted, failed, oom]
    assert retry.action("running") == interrupted and retry.action("pending") == "start"


def test_a_left_run_says_which_key_left_it():
    assert "resume_unfinished=false; resume_unfinished=true tries it again" in Retry(resume_unfinished=False).left(
        "interrupted"
    )
    assert "restart_errored=false; restart_errored=true tries" in Retry(restart_errored=False).left("oom")
    with pytest.raises(UserError, match=r"retry=\['oom', 'x'\]: expected all"):
        retry_policy({"retry": ["oom", "x"]})
