"""The command line: arguments, messages and exit statuses, and nothing that computes.

May import every room, and does so on demand: what a command does not need costs it no time.
"""
