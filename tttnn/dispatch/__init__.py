"""Jobs wait in a line for engine processes, which are started, fed, found dead and replaced.

Knows processes, order and time. Does not know HTTP or how a model is adapted; it does not even load torch.
"""
