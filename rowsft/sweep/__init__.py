"""Many jobs, one fresh process each.

May import config, store and output. Must not import torch: whether a job is done is told at once.
"""
