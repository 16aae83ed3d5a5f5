"""The part of a record that says how the trained parameters were stepped."""

from dataclasses import dataclass

from rowsft.record.part import Count, Number, Part, Text


@dataclass(frozen=True, kw_only=True)
class RateGroup(Part):
    """Parameters that were stepped at the run's learning rate times `rate_factor`."""

    name: Text | None = None
    parameters: Count | None = None
    rate_factor: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Optimization(Part):
    """How the trained parameters were stepped. optimizer: its class.

    Of a method with steps of its own besides: its parameter groups, and in a few words what it did between steps.
    """

    optimizer: Text | None = None
    groups: list[RateGroup] | None = None
    between_steps: Text | None = None
