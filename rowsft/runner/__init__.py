"""One run, by the same code for every method: load, select, attach, train, evaluate, save, measure, record.

May import everything but cli, plan, export, sweep and baselines. Must not know a method, task or metric by name.
"""
