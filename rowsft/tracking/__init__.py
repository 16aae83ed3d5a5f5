"""Dashboards: runs mirrored on W&B as they go, or from their records; uploads; the workspace that shows them.

May import record, store, output and compat. Must not import torch, and never ends a run: what a tracker cannot do is a
warning.
"""
