"""Settings of a system's recipe: a JSON file, and a flag each on the command line.

Any setting is a flag by its name, those of a stage or of another group behind a dot: `--kl-weight 0.5`,
`--finetune.epochs 3`. A recipe gives short names to what is set most often (`aliases`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

IMAGE_SIZE = (80, 64)


class TrainConfig(BaseModel):
    """Settings of one training."""

    model_config = ConfigDict(extra="forbid")

    epochs: NonNegativeInt = Field(description="passes over the training examples")
    batch_size: PositiveInt = Field(128, description="examples per step and process")
    learning_rate: PositiveFloat = Field(1e-3, description="peak rate of AdamW")
    rates: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="factors of the rate by the beginning of parameters' names; 0 freezes them"
    )
    weight_decay: NonNegativeFloat = Field(0.05, description="AdamW's decay; biases, norms and scalars are exempt")
    warmup: NonNegativeFloat = Field(0.1, description="steps in which the rate rises; below 1 a share of all steps")
    clip_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    accumulate: PositiveInt = Field(1, description="batches whose gradients make one step")
    chunk: PositiveInt | None = Field(
        None, description="examples of a batch that are computed at a time; the loss still sees all of the batch"
    )
    workers: NonNegativeInt = Field(0, description="processes that load batches; 0 loads in the training process")
    checkpoint_minutes: PositiveFloat = Field(5.0, description="a checkpoint is written this often, and every epoch")

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share to be continued: all but what changes no number."""
        return self.model_dump(exclude={"workers", "checkpoint_minutes"})


class Settings(BaseModel):
    """What the settings of all recipes have in common."""

    model_config = ConfigDict(extra="forbid")
    aliases: ClassVar[Mapping[str, str]] = {}

    seed: NonNegativeInt = Field(0, description="of everything random")
    image_height: PositiveInt | None = Field(None, description="pixels that images are brought to; else what suits")
    image_width: PositiveInt | None = Field(None, description="pixels that images are brought to; else what suits")
    start_from: Path | None = Field(None, description="bundle whose weights to start from, where names and shapes fit")

    @property
    def suitable_size(self) -> tuple[int, int]:
        """Height and width of images where none is set."""
        return IMAGE_SIZE

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that images are brought to."""
        height, width = self.suitable_size
        return self.image_height or height, self.image_width or width

    def overridden(self, given: Mapping[str, Any]) -> Self:
        """These settings with others in their place.

        Args:
            given: values by name, of nested settings behind a dot; texts are read as the setting's type. None leaves a
                setting as it is.

        Raises:
            ValueError: there is no such setting, or its value is not allowed; the message names it.
        """
        values = _plain(self)
        for name, value in given.items():
            if value is None:
                continue
            *groups, last = self.aliases.get(name, name).split(".")
            place = values
            for group in groups:
                place = place.get(group, {})
            if last not in place:
                raise ValueError(
                    f"{name!r} is no setting; known: {', '.join(setting for setting, _, _ in self.listed())}"
                )
            place[last] = value
        return type(self).model_validate(values)

    def listed(self) -> Iterator[tuple[str, Any, str]]:
        """Every setting's name as a flag has it, its value and what it is."""
        short = {long: alias for alias, long in self.aliases.items()}
        for name, value, description in _leaves(self):
            yield short.get(name, name), value, description

    def without_stages(self) -> dict[str, Any]:
        """What all stages depend on, as plain values: every setting but those of single stages."""
        return self.model_dump(
            mode="json",
            exclude={name for name in type(self).model_fields if isinstance(getattr(self, name), TrainConfig)},
        )


def read_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Settings on a command line, ["--kl-weight", "0.5", "--finetune.epochs=3"], by name.

    Raises:
        ValueError: an argument is no flag, or a flag has no value.
    """
    given: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            raise ValueError(f"unexpected argument {argument!r}")
        name, separator, value = argument[2:].partition("=")
        if not separator:
            following = next(rest, None)
            if following is None:
                raise ValueError(f"{argument} has no value")
            value = following
        given[name.replace("-", "_")] = value
    return given


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _leaves(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    for name, entry in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        elif is_dataclass(value) and not isinstance(value, type):
            yield from ((f"{prefix}{name}.{key}", part, entry.description or "") for key, part in asdict(value).items())
        else:
            yield prefix + name, value, entry.description or ""
