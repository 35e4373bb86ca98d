"""One directory of texts, passages and vectors: built, appended to, deleted from, compacted, and searched.

Knows store, embedding and index at once. Does not know language models.
"""
