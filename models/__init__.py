"""Networks and nothing else: encoders from Hugging Face backbones, the dual encoder, the category head, the tokenizer.

No training logic, no file formats beyond Hugging Face checkpoint folders. Shapes are written beside every forward.
"""
