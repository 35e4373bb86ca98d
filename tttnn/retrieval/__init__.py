"""What a search answers, what a retriever promises, and which of the nearest documents are trained on.

Knows neighbors, distances and vectors. Does not know files, nor how a model is trained.
"""
