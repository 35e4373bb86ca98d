"""Measuring methods on documents: protocols, baselines, result files, intervals, audits, and a task harness.

Knows trainers and scores. Does not know how results are shown.
"""
