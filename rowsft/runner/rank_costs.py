"""The memory and energy of a run in several processes: of each, the largest, and together."""

import socket
from dataclasses import fields
from typing import Any

from rowsft.record import Energy, Memory, PhaseMemory, RankRecord, RanksRecord
from rowsft.runner.context import Job

_PHASES = ("load", "select", "train", "evaluate")
_BYTES = tuple(field.name for field in fields(PhaseMemory) if field.name.endswith("_bytes"))


def over_ranks(job: Job) -> dict[str, Any]:
    """Return the record's `ranks`, with `memory` and `energy` over all processes; nothing for a process that is alone.

    `memory` has the largest number of any process in each place, since that decides what fits; `energy` is the sum.
    Every process calls it; all but the first get numbers of their own alone.
    """
    ranks = job.ranks
    if ranks.strategy is None:
        return {}
    own = RankRecord(rank=ranks.rank, host=socket.gethostname(), device=str(job.device), memory=job.memory.record)
    every = ranks.gathered((own, job.energy.record))
    if not every:
        return {}
    wrapped = type(job.trainer.model_wrapped).__name__ if job.trainer is not None else None
    record = RanksRecord(
        strategy=ranks.strategy,
        processes=ranks.size,
        backend=ranks.backend,
        wrapped=wrapped,
        train_peak_allocated_bytes=_sum([one.memory.train.peak_allocated_bytes for one, _ in every]),
        train_resident_peak_bytes=_sum([one.memory.train.resident_peak_bytes for one, _ in every]),
        each=[one for one, _ in every],
    )
    energies = [energy for _, energy in every]
    together = {"energy": _energy(energies)} if job.energy.record.kind and job.resumption is None else {}
    return {"ranks": record, "memory": _largest([one.memory for one, _ in every]), **together}


def _largest(memories: list[Memory]) -> Memory:
    phases = {}
    for phase in _PHASES:
        every = [getattr(memory, phase) for memory in memories]
        numbers = {name: [getattr(one, name) for one in every if getattr(one, name) is not None] for name in _BYTES}
        phases[phase] = every[0].changed(**{name: max(found) for name, found in numbers.items() if found})
    return memories[0].changed(**phases)


def _energy(energies: list[Energy]) -> Energy:
    names = [field.name for field in fields(Energy) if field.name.endswith("_joules")]
    return energies[0].changed(**{name: _sum([getattr(one, name) for one in energies]) for name in names})


def _sum(numbers: list[Any]) -> Any:
    """Of what every process has measured; None where one has not."""
    return None if any(number is None for number in numbers) else sum(numbers)
