"""From texts to vectors: an encoder's files, its tokens, and batches without padding.

Knows encoders. Does not know where texts come from, nor what vectors are for.
"""
