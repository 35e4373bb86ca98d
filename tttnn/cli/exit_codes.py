"""What the command ends with."""

FAILED, USAGE, DAMAGED, INTERRUPTED = 1, 2, 3, 130
"""Failed; a wrong argument, setting or file name; a damaged file; Ctrl-C. Done is 0."""
