"""What depends only on the corpus, trained before a query comes: experts of a datastore for one model.

Knows datastores, low-rank matrices and files. Does not know HTTP, the command line or sets of documents to measure.
"""
