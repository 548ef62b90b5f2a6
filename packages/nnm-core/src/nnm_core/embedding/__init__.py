"""Vectors out of the reading: KV-Embedding, whitening, layer choice, sparse token vectors."""
