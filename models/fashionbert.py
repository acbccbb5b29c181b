"""FashionBERT: does this text belong to this photo? One stream of text tokens and image patches through a BERT.

Notable: no object detector. The photo is cut into a grid of equal patches, each a token: a small ResNet shared over
patches reads their pixels, or a pretrained tower (ViT, DINOv2, EfficientNet) its feature map. The BERT is any folder of
that kind or a small one from scratch; its positions are the text's, patches have positions of their own, and three
segments tell title (T), query (Q) and image (I) apart. Three heads: masked words (MLM), masked patches (MPM), and text
and image alignment (TIA), which alone is served. Words and patches enter the stream in one space, as in "Align before
Fuse": a contrastive loss compares their means there, without which TIA learns nothing from scratch for a long time. How
well the means agree is part of the answer: a small stream sees details, and loses much of that again.

Sources: Gao et al., "FashionBERT: Text and Image Matching with Adaptive Loss for Cross-modal Retrieval", SIGIR 2020;
Li et al., "Align before Fuse", NeurIPS 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, PreTrainedModel

from .backbones import backbone_from_config, plain_config
from .encoders import ImageEncoderConfig, TextEncoderConfig
from .image_tower import ImageTower, normalised

SEGMENTS = {"title": 0, "query": 1, "image": 2}
PATCH_CHANNELS = (32, 64)
TEMPERATURE = 0.07  # of the cosines of what enters the stream, at first
ENTRANCE_GAIN = 0.3  # how much they count beside the TIA head, at first


class PatchGrid(BaseModel):
    """A photo cut into rows x columns of equal patches, which a ResNet from scratch reads one by one."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["grid"] = "grid"
    height: PositiveInt
    width: PositiveInt
    rows: PositiveInt = 8
    columns: PositiveInt = 8


class PatchTower(BaseModel):
    """The feature map of a pretrained backbone, a token an entry."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["tower"] = "tower"
    encoder: ImageEncoderConfig
    rows: PositiveInt
    columns: PositiveInt

    @property
    def height(self) -> int:
        """Pixels of the photos."""
        return self.encoder.height

    @property
    def width(self) -> int:
        """Pixels of the photos."""
        return self.encoder.width


class FashionBertConfig(BaseModel):
    """What is needed to rebuild a FashionBERT.

    `text` describes the BERT and how long a title may be; a query is as long at most. `visual_words` is the width of
    the distribution that the MPM head predicts; `entrance` says whether the agreement of mean words and mean patches as
    they enter the stream is part of the answer.
    """

    model_config = ConfigDict(extra="forbid")

    text: TextEncoderConfig
    patches: PatchGrid | PatchTower
    visual_words: PositiveInt
    entrance: bool = True


@dataclass(frozen=True)
class Predictions:
    """Logits of N texts with B photos; the first B texts belong to the photos in turn.

    Attributes:
        match: [N].
        tokens: [B, M, V], of the positions that were asked for.
        patches: [B, P, K].
        entrance: [B, N], cosines of photos and texts as they enter the stream, that of the title and that of the query
            added, over a temperature.
    """

    match: Tensor
    tokens: Tensor
    patches: Tensor
    entrance: Tensor


class FashionBert(nn.Module):
    """Title, query and photo to one stream of tokens, and what its heads make of them.

    Args:
        config: the architecture.
        language_model: a BERT without its pooler; built from `config.text.backbone` with random weights when None.
        tower: the backbone of a `PatchTower`; likewise.

    Raises:
        ValueError: the photos cannot be cut into such a grid.
    """

    def __init__(
        self,
        config: FashionBertConfig,
        language_model: PreTrainedModel | None = None,
        tower: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.language_model: Any = language_model or backbone_from_config(config.text.backbone)
        self.language_model.register_module("pooler", None)  # the TIA head has one of its own
        # Of a hundred tokens a CPU trains a fifth faster without the fused kernel, whose backward pass is slow there.
        self.language_model.set_attn_implementation("eager")
        width, vocab_size = self.language_model.config.hidden_size, self.language_model.config.vocab_size
        patches = config.patches
        self.patch_encoder: PatchResNet | TowerPatches
        if isinstance(patches, PatchGrid):
            self.patch_encoder = PatchResNet(patches)
        else:
            self.patch_encoder = TowerPatches(patches, tower)
        count = patches.rows * patches.columns
        self.patch_projection = nn.Sequential(nn.Linear(self.patch_encoder.width, width), nn.LayerNorm(width))
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))
        gain = ENTRANCE_GAIN if config.entrance else 0.0
        self.entrance_gain = nn.Parameter(torch.tensor(gain), requires_grad=config.entrance)
        self.patch_positions = nn.Parameter(torch.empty(count, width).normal_(std=0.02))
        self.segments = nn.Parameter(torch.empty(len(SEGMENTS), width).normal_(std=0.02))
        self.token_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.token_bias = nn.Parameter(torch.zeros(vocab_size))
        self.patch_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, config.visual_words)
        )
        self.match_head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    @property
    def words(self) -> nn.Embedding:
        """The vectors of the BERT's tokens."""
        embedding: nn.Embedding = self.language_model.embeddings.word_embeddings
        return embedding

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        query_ids: Tensor | None = None,
        query_mask: Tensor | None = None,
        zeroed: Tensor | None = None,
        masked_positions: Tensor | None = None,
        photo: Tensor | None = None,
    ) -> Predictions:
        """All heads, for training: B photos, each read once, with N texts.

        Args:
            pixel_values: [B, H, W, 3] uint8.
            input_ids, attention_mask: [N, L] int64 of titles; the first token stands for the whole. The first B are
                the photos' own.
            query_ids, query_mask: [N, Q] int64 of the query; None where no row has one.
            zeroed: [N, P] bool, patches whose features are taken away.
            masked_positions: [B, M] int64, places of the photos' own titles whose words are to be predicted.
            photo: [N] int64, the photo beside each text; None: there are as many, one after the other.
        """
        features = self.patches(pixel_values)
        patches = features if photo is None else features[photo]
        if zeroed is not None:
            patches = patches.masked_fill(zeroed.unsqueeze(2), 0.0)
        states = self.stream(patches, input_ids, attention_mask, query_ids, query_mask)
        texts = self._mean_text(input_ids, attention_mask, query_ids, query_mask)
        own = states[: len(features)]
        if masked_positions is None:
            masked_positions = input_ids.new_zeros(len(own), 0)
        places = masked_positions.unsqueeze(2).expand(-1, -1, own.shape[2])
        return Predictions(
            self._matched(states, patches, texts),
            F.linear(self.token_head(own.gather(1, places)), self.words.weight, self.token_bias),
            self.patch_head(own[:, -patches.shape[1] :]),
            self._agreement(features, texts),
        )

    def entrance(
        self,
        patches: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        query_ids: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, N] of all of B photos' features with all of N texts, by what enters the stream alone."""
        return self._agreement(patches, self._mean_text(input_ids, attention_mask, query_ids, query_mask))

    def _agreement(self, patches: Tensor, texts: Tensor) -> Tensor:
        return F.normalize(patches.mean(1), dim=1) @ texts.T * self.logit_scale.exp()

    def _mean_text(
        self, input_ids: Tensor, attention_mask: Tensor, query_ids: Tensor | None, query_mask: Tensor | None
    ) -> Tensor:
        """[N, D]: titles by their mean words, of unit length, and queries likewise added: a title that agrees does not
        drown a query of few words that does not."""
        texts = F.normalize(self._mean_word(input_ids, attention_mask), dim=1)
        if query_ids is not None and query_mask is not None:
            texts = texts + F.normalize(self._mean_word(query_ids, query_mask), dim=1)
        return texts

    def _mean_word(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[N, D] means of the words of texts [N, L], 0 for those without; the first token, of all alike, is none."""
        weights = mask[:, 1:, None].to(self.words.weight.dtype)
        return (self.words(ids[:, 1:]) * weights).sum(1) / weights.sum(1).clamp(min=1)

    def match(
        self,
        patches: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        query_ids: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B] of the TIA head alone, from the features of `patches`: one photo's serve any number of texts."""
        states = self.stream(patches, input_ids, attention_mask, query_ids, query_mask)
        return self._matched(states, patches, self._mean_text(input_ids, attention_mask, query_ids, query_mask))

    def _matched(self, states: Tensor, patches: Tensor, texts: Tensor) -> Tensor:
        """Logits [N]: what the stream says of each pair, and how well its patches and mean words agree."""
        cosines = (F.normalize(patches.mean(1), dim=1) * texts).sum(1)
        return self.match_head(states[:, 0])[:, 0] + self.entrance_gain * self.logit_scale.exp() * cosines

    def patches(self, pixel_values: Tensor) -> Tensor:
        """The features [B, P, D] of a photo's patches, row by row; pixels [B, H, W, 3] uint8."""
        features: Tensor = self.patch_projection(self.patch_encoder(pixel_values))
        return features

    def stream(
        self,
        patches: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        query_ids: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """The encoder's last states [B, L (+ Q) + P, D]: title, query, patches."""
        parts = [self.words(input_ids) + self.segments[SEGMENTS["title"]]]
        masks = [attention_mask]
        positions = [torch.arange(input_ids.shape[1], device=input_ids.device)]
        if query_ids is not None and query_mask is not None:
            parts.append(self.words(query_ids) + self.segments[SEGMENTS["query"]])
            masks.append(query_mask)
            positions.append(torch.arange(query_ids.shape[1], device=query_ids.device))
        image = patches + self.patch_positions + self.segments[SEGMENTS["image"]]
        parts.append(image)
        masks.append(torch.ones_like(image[:, :, 0], dtype=attention_mask.dtype))
        # To the BERT every patch is at its first position: where it lies says `patch_positions`.
        positions.append(torch.zeros(image.shape[1], dtype=torch.int64, device=image.device))
        states: Tensor = self.language_model(
            inputs_embeds=torch.cat(parts, 1),
            attention_mask=torch.cat(masks, 1),
            position_ids=torch.cat(positions)[None],
        ).last_hidden_state
        return states


class PatchResNet(nn.Module):
    """A ResNet (He et al., 2016) for single patches, the same for all.

    Its last map is not averaged: patches are a few pixels wide, and where in a patch an edge runs says what it is of.

    Raises:
        ValueError: the sides of the photo are no multiples of the grid's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, grid: PatchGrid) -> None:
        super().__init__()
        if grid.height % grid.rows or grid.width % grid.columns:
            raise ValueError(
                f"photos of {grid.height}x{grid.width} pixels cannot be cut into {grid.rows}x{grid.columns} patches"
            )
        self.grid = grid
        statistics = ImageEncoderConfig.model_fields
        self.register_buffer("mean", torch.tensor(statistics["mean"].default) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(statistics["std"].default) * 255.0, persistent=False)
        narrow, wide = PATCH_CHANNELS
        self.layers = nn.Sequential(
            nn.Conv2d(3, narrow, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            ResidualBlock(narrow, narrow),
            # Pooled, not strided: oneDNN's bfloat16 convolution is wrong where it strides over maps this small.
            nn.AvgPool2d(2, ceil_mode=True),
            ResidualBlock(narrow, wide),
            nn.Flatten(),
        )
        patch = torch.zeros(1, 3, grid.height // grid.rows, grid.width // grid.columns)
        with torch.no_grad():
            self.width = self.layers.eval()(patch).shape[1]
        self.layers.train()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 -> [B, P, C], row by row."""
        pixels = normalised(pixel_values, self.mean, self.std)
        rows, columns = self.grid.rows, self.grid.columns
        height, width = self.grid.height // rows, self.grid.width // columns
        cut = pixels.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)
        features: Tensor = self.layers(cut.reshape(-1, 3, height, width))
        return features.reshape(-1, rows * columns, self.width)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        return F.relu(self.body(inputs) + self.shortcut(inputs))


class TowerPatches(ImageTower):
    """The feature map of a pretrained backbone, an entry a patch.

    Raises:
        ValueError: the backbone's map has another number of entries than the configuration says.
    """

    def __init__(self, config: PatchTower, backbone: PreTrainedModel | None) -> None:
        encoder = config.encoder
        super().__init__(
            encoder.backbone, encoder.height, encoder.width, encoder.mean, encoder.std, encoder.pooling, backbone
        )
        self.width = self.patch_width
        if self.patch_count != config.rows * config.columns:
            raise ValueError(f"the tower has {self.patch_count} patches, not {config.rows}x{config.columns}")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 -> [B, P, C], row by row."""
        return self.patch_features(pixel_values)


def small_bert(vocab_size: int, max_length: int, *, hidden_size: int, layers: int) -> dict[str, Any]:
    """The configuration of a BERT that trains from scratch on a few CPU cores: too briefly to need dropout."""
    backbone = BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden_size // 48),
        intermediate_size=2 * hidden_size,
        max_position_embeddings=max_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    return plain_config(backbone.to_dict())
