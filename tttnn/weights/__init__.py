"""A model's weights in blocks of memory: captured, trained for one query, shared between processes, put back.

Knows memory and where a model keeps its parameters. Does not know losses, optimizers or texts.
"""
