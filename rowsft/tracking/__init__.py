"""Trackers: W&B and the one that does nothing, behind one small protocol.

May import record, store and output. Must not import torch, and never ends a run: what a tracker cannot do is a warning.
"""
