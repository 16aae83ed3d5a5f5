"""What is used of torch, transformers, accelerate, PEFT and W&B beyond their published interfaces: a file a library.

Imports no other room, and must know none: every name here says what it gives, and why there is no public way to it.
tests/unit/test_compat.py runs on the oldest and the newest versions that pyproject.toml admits (`make test-oldest`,
`make test-peft-versions`), tests/unit/test_track.py on W&B. Methods that a class of ours overrides in one of theirs
(`_apply`, `_prepare_model`) stay where that class is.
"""
