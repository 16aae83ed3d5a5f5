"""Model and tokenizer from a hub id, a local folder or a package, what a model takes, and how it is saved whole.

May import tasks, assets, store, selection and layers. Must not know methods, and nothing of a run but its settings.
"""
