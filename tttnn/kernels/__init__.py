"""Arithmetic on tensors by the native core, beside the frameworks' own: attention, linear layers, pooling, precision.

Knows tensors and processors. Does not know models' weights, texts or files.
"""
