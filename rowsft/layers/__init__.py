"""How a linear layer holds its weight: which way round, whether it has data, whether it is packed in 4 bits.

May import compat. Must not know adapters, models or tasks.
"""
