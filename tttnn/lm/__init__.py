"""What a causal language model computes of a text: windows, loss, scores, and text that goes on.

Knows models and tokens. Does not know whether weights are adapted, nor how.
"""
