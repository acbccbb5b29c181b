"""A whole catalogue through a model, once: any feed in, one Parquet file out, nothing lost and nothing asked twice.

`job.py` is the way of a row from the feed to the result; `systems.py` says what is asked and what a row of the result
is; `parts.py` what lies on disk. Who answers is a `client.ShelfwiseClient`: of servers, or of an exported release in
this process (`in_process.py`); or actors that have one (`on_ray.py`). No torch.
"""
