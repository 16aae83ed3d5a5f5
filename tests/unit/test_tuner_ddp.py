"""Data-parallel training: two processes with half a batch each end where one process with the whole batch ends."""

import os

import pytest
import torch
from rows import adapt, family
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

STEPS = 3


def trained(model, batch) -> dict[str, torch.Tensor]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.5)
    for _ in range(STEPS):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name.removeprefix("module."): p.detach().clone() for name, p in parameters.items()}


def fresh(channel: str):
    model, batch, targets = family("bert", torch.float64)
    return adapt(model, targets, channel=channel), batch


def worker(rank: int, channel: str, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    model, batch = fresh(channel)
    mine = {key: value[rank::2] for key, value in batch.items()}
    torch.save(trained(DistributedDataParallel(model), mine), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(("channel", "port"), [("rows", 29531), ("both", 29533)])
def test_two_processes_train_what_one_does(channel, port, tmp_path):
    multiprocessing.spawn(worker, (channel, port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = trained(*fresh(channel))
    assert alone and first.keys() == alone.keys()
    for name, value in alone.items():
        assert value.abs().max() > 0
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-9)
