"""What is trained: eligible layers, the unit groups in them, the budget, how it is dealt, and the choice by scores.

May import layers. Must not know the adapter's configuration, PEFT's wrapped models, or runs.
"""
