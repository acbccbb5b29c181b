"""The vector index: photos of a catalogue as embeddings, searched by text, photo or product.

`publish` writes a snapshot (vectors, ids, attributes and which encoder made them), `open_snapshot` maps a checked one
into memory, `Searcher` answers. Imports NumPy and faiss, no torch and, but for atomic writing, nothing else of the
project: an export puts a copy of snapshot.py, filters.py, partition.py and search.py beside the model that serves them.
"""
