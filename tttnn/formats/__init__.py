"""People's files: which kind one is, how it is unpacked, decoded and cut into texts and rows, and what is left out.

Knows bytes, names and settings. Does not know what a document is.
"""
