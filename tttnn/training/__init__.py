"""Test-time training: the transaction that retrieves, trains on each neighbor, hands out the model and restores it.

Knows one model, one query and a clock. Does not know sets of documents, files of results, or HTTP.
"""
