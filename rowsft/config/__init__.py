"""Configurations: composed, checked key by key, made into objects, and planned as a run with its id.

May import store, output and config_folders. Must not import torch: a command with a typo is answered at once.
"""
