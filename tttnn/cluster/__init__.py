"""A corpus in shards, each of them a datastore, searched as one.

Knows datastores, deadlines and replicas. Does not know models, nor what an answer is used for.
"""
