"""Weights in few bits, low-rank approximations, and what an adapter on a quantised base may start from.

Pure functions of tensors. May import errors. Must not know layers, models or adapters. bitsandbytes is asked for by
name alone: all of it computes without.
"""
