"""Labelled pictures from class folders, idx files and the hub, read when a batch needs them.

May import what tasks import. Must not know models, processors or batches.
"""

from rowsft.tasks.pictures.picture import Labelled, Picture
from rowsft.tasks.pictures.sources import Pictures

__all__ = ["Labelled", "Picture", "Pictures"]
