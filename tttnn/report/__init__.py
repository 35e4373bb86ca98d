"""One page, tables and figures made from result files.

Knows result files. Does not know models, and trains nothing.
"""
