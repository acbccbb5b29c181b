"""One pre-norm self-attention layer with a residual, for a handful of tokens (Vaswani et al., 2017).

Written out: over two modalities or twenty segments of a photo torch's fused attention is slower on a CPU, three times
forward over two tokens, ten times backward over twenty.
"""

from __future__ import annotations

from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Self-attention over the tokens of each row.

    Args:
        width: of a token.
        num_heads: a divisor of it.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        batch, length, width = tokens.shape
        projected = self.query_key_value(self.norm(tokens)).view(batch, length, 3, self.num_heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        attended = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1) @ value
        return tokens + self.output(attended.transpose(1, 2).reshape(batch, length, width))
