"""The command line: flags become settings, one call is made, its answer is printed.

Knows every package by name. Nothing imports it.
"""
