"""The Method protocol, what methods built on PEFT share, and row-SFT as a Method.

May import tuner, importance, selection and config. Must not import a baseline: those are found by name.
"""
