"""Networks and nothing else: encoders from Hugging Face backbones, categorizer, colour matcher, tokenizer.

No training logic, no file formats beyond Hugging Face checkpoint folders. Shapes are written beside every forward.
"""
