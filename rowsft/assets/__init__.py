"""Packaged models and data: a table of versions and hashes, and how they are fetched and unpacked.

May import config_folders and the single files. Must not know tasks or models: those ask for an asset by its key.
"""
