"""How a linear layer holds its weight: which way round, whether it has data, whether it is packed in 4 bits.

Imports no other room. Must not know adapters, models or tasks.
"""
