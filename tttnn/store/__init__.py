"""Texts: what a document is, corpora of files and folders, and the compressed store that keeps documents.

Knows bytes, metadata and files. Does not know vectors, models or who asks.
"""
