"""Texts: what a document is, how people's files are read, and the compressed store that keeps documents.

Knows bytes, metadata and files. Does not know vectors, models or who asks.
"""
