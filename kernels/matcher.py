"""The matcher of system 4 for serving: a ragged batch of products in one launch, the front door of kernel 2.

The weights come absorbed and packed (matcher_weights.py). bfloat16 weights on CUDA go to matcher_triton.py, all others,
and products too long for a tile, to matcher_torch.py. For inference: no gradient.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import matcher_torch
from kernels.matcher_weights import MatcherWeights, names_of
from kernels.ragged import RaggedProducts

TOKEN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def match_products(
    weights: MatcherWeights, image_tokens: Tensor, label_tokens: Tensor, cu_images: Tensor, cu_labels: Tensor
) -> Tensor:
    """Logits of every image over the labels of its product, for a ragged batch of P products.

    Args:
        weights: on the tokens' device; bfloat16 ones make CUDA tensors take the fused kernel.
        image_tokens: [N, d] float32, bfloat16, float16 or float64, the products' images one product after the other.
        label_tokens: [M, d] of the same dtype, their labels in the same order.
        cu_images, cu_labels: int32 or int64 [P+1] cumulative lengths from 0 to N and to M. Best on the CPU: lengths on
            a GPU are waited for, since they decide how many products share a block.

    Returns:
        Packed logits [sum n_p * m_p], float32 (float64 for float64 weights), row-major n_p x m_p a product, products in
        order. Softmax over the labels is the answer. No product's logits depend on the others, not even on tokens that
        are not finite, which make all logits of their own product NaN.

    Raises:
        ValueError: an argument has the wrong dtype, rank, width or device, or the lengths do not fit the tokens.
    """
    for name, tokens in (("image_tokens", image_tokens), ("label_tokens", label_tokens)):
        if tokens.dim() != 2 or tokens.shape[1] != weights.width:
            raise ValueError(f"{name}: expected [tokens, {weights.width}], got {tuple(tokens.shape)}")
        if tokens.dtype not in TOKEN_DTYPES:
            raise ValueError(f"{name}: expected one of {names_of(TOKEN_DTYPES)}, got {tokens.dtype}")
        if tokens.device != weights.matrices.device:
            raise ValueError(f"{name}: expected device {weights.matrices.device}, got {tokens.device}")
    if image_tokens.dtype != label_tokens.dtype:
        raise ValueError(f"label_tokens: expected image_tokens' {image_tokens.dtype}, got {label_tokens.dtype}")
    products = RaggedProducts.from_cumulative(cu_images, cu_labels, len(image_tokens), len(label_tokens))
    logits = torch.empty(products.pairs, dtype=weights.vectors.dtype, device=image_tokens.device)
    long: Sequence[int] = range(len(products))
    with torch.no_grad():
        if _takes_triton(weights.matrices):
            from kernels import matcher_triton

            long = matcher_triton.match_tiles(weights, image_tokens, label_tokens, products, logits)
        if long:  # unpacking converts all weights: several times a small batch's launch
            matcher_torch.match_groups(weights.units, image_tokens, label_tokens, products.groups(long), logits)
    return logits


def _takes_triton(matrices: Tensor) -> bool:
    """bfloat16 weights on CUDA do; float32 ones in Triton's interpreter, whose bfloat16 products are not reliable."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")
    return matrices.dtype == torch.float32 if interpreted else matrices.is_cuda and matrices.dtype == torch.bfloat16
