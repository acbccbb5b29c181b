"""Losses and layers written in the Triton language, each with a vectorised torch path and a float64 reference.

A front door (label_kl.py, matcher.py) carries the public docstrings and checks the arguments; the file of the same name
ending in `_triton` holds the kernels, the one ending in `_torch` what CPU tensors take, reference.py and
reference_matcher.py the plain float64 formulas that both are tested against; matcher_weights.py is what a matcher's
weights look like to all of them. Importing the front doors needs torch only: Triton is imported at the first call with
CUDA tensors.
"""
