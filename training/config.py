"""What a training run can be told: one table, from which come flags, YAML and checks."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

from cam_tf.files import written_whole
from cam_tf.suggestions import did_you_mean

_FILE = "config.yaml"


def _option(default, help: str, *, choices=None, least=None, below=None):
    metadata = {"help": help, "choices": choices, "least": least, "below": below}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """One training run. Every field is a flag and a key of the YAML file.

    Raises:
        ValueError: a value that a field cannot have.
    """

    run: str = _option("", "The folder of the run; started again with it, a run goes on.")
    data: str = _option("", "A folder of class folders, or the name of a data set of TFDS.")
    train_split: str = _option("train", "What to train on.")
    validation_split: str = _option("validation", "What to measure after each epoch.")
    test_split: str | None = _option(None, "What the final figures are of; default: validation.")
    data_dir: str | None = _option(None, "Where TFDS keeps its data.")
    download: bool = _option(True, "Download and prepare the data set if it is not there.")
    cache: bool = _option(False, "Keep the encoded images in memory.")
    strict: bool = _option(False, "Stop at the first bad record; default: leave out and count.")
    augment: bool = _option(True, "Change the training images at random.")
    image_size: int = _option(224, "Height and width of the images.", least=8)
    batch_size: int = _option(32, "Images in a step, of all replicas together.", least=1)

    backbone: str = _option("MobileNetV2", "A name from 'cam-tf backbones', or SmallVGG.")
    weights: str | None = _option(None, "imagenet, or a weights file; default: random.")
    pooling: str = _option("avg", "Global average or maximum pooling.", choices=("avg", "max"))
    head_conv: tuple[int, ...] | None = _option(
        None, "Units of the convolutions before pooling; default: the paper's.", least=1
    )
    head_groups: int = _option(1, "Groups of these convolutions.", least=1)
    output_stride: int | None = _option(None, "Pixels between positions of the maps.", least=1)
    dropout: float = _option(0.0, "Rate of the dropout before the classifier.", least=0, below=1)

    head_epochs: int = _option(0, "Epochs of the new head alone, before the rest.", least=0)
    epochs: int = _option(10, "Epochs after those.", least=0)
    fine_tune_from: str | None = _option(None, "The first layer to train then; default: all.")
    optimizer: str = _option("adamw", "How to descend.", choices=("sgd", "adam", "adamw"))
    learning_rate: float = _option(1e-3, "The highest one.", least=0)
    head_learning_rate: float = _option(1e-3, "That of the epochs of the head alone.", least=0)
    schedule: str = _option("cosine", "How it falls.", choices=("cosine", "constant"))
    warmup_epochs: float = _option(0.0, "Epochs in which it rises from 0, in each phase.", least=0)
    momentum: float = _option(0.9, "Of sgd.", least=0, below=1)
    weight_decay: float | None = _option(None, "Decoupled; default: the optimizer's.", least=0)
    label_smoothing: float = _option(0.0, "Share given to all classes.", least=0, below=1)
    gradient_accumulation: int = _option(1, "Steps whose gradients are averaged.", least=1)
    ema: float | None = _option(
        None, "Momentum of the average of weights that is measured and kept.", least=0, below=1
    )
    mixed_precision: str | None = _option(
        None, "Half precision to compute in.", choices=("float16", "bfloat16")
    )
    xla: bool = _option(False, "Compile the step with XLA.")
    deterministic: bool = _option(True, "Deterministic operations, slower on GPUs.")
    seed: int = _option(0, "Another number, other weights, order and augmentation.", least=0)

    strategy: str = _option(
        "one",
        "One device, all of this machine, or those of the machines in TF_CONFIG.",
        choices=("one", "mirrored", "multi_worker"),
    )
    logical_cpus: int = _option(1, "Devices to divide the CPU into, to try 'mirrored'.", least=1)

    monitor: str = _option("val_accuracy", "What is best: a column of log.csv.")
    localization_images: int = _option(200, "Images measured after each epoch.", least=0)
    picture_images: int = _option(8, "Images drawn after each epoch.", least=0)
    tensorboard: bool = _option(False, "Write logs for TensorBoard.")

    def __post_init__(self):
        for spec in dataclasses.fields(self):
            _check(spec, getattr(self, spec.name))
        for name in ("run", "data"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing: {_fields()[name].metadata['help']}")
        if not self.head_epochs + self.epochs:
            raise ValueError("head_epochs and epochs are 0: there is nothing to train.")
        if self.xla and self.deterministic:
            raise ValueError(
                "xla does not go with deterministic operations (Keras would not compile): add "
                "--no-deterministic, or leave out --xla."
            )
        if self.strategy != "one" and self.gradient_accumulation > 1:
            raise ValueError(
                f"gradient_accumulation={self.gradient_accumulation} goes with strategy 'one' "
                "only: Keras cannot accumulate under tf.distribute. Add devices in its place."
            )

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.run).expanduser()

    @property
    def all_epochs(self) -> int:
        """The epochs of both phases."""
        return self.head_epochs + self.epochs

    def to_yaml(self) -> str:
        """All fields, those that were left to their defaults too."""
        values = dataclasses.asdict(self)
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return yaml.safe_dump(values, sort_keys=False)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Config":
        """Makes a configuration of what YAML or JSON holds.

        Raises:
            ValueError: an unknown key (near ones are suggested) or a value that does not fit.
        """
        for name in values:
            if name not in _fields():
                raise ValueError(
                    f"{name!r} is no key of the configuration.{did_you_mean(str(name), _fields())} "
                    f"Keys: {', '.join(_fields())}."
                )
        return cls(**{name: _converted(_fields()[name], value) for name, value in values.items()})


def _fields() -> dict[str, dataclasses.Field]:
    return {spec.name: spec for spec in dataclasses.fields(Config)}


def _kind(spec: dataclasses.Field) -> tuple[type, bool]:
    """The type of a field (of a tuple: ``tuple``), and whether it may be None."""
    kinds = typing.get_args(spec.type) if isinstance(spec.type, types.UnionType) else [spec.type]
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    return typing.get_origin(kind) or kind, types.NoneType in kinds


def _converted(spec: dataclasses.Field, value):
    """YAML 1.1 reads 1e-3 as text, has no tuples, and 1 for 1.0."""
    kind, _ = _kind(spec)
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return tuple(value) if kind is tuple and isinstance(value, list) else value


def _check(spec: dataclasses.Field, value) -> None:
    kind, optional = _kind(spec)
    if value is None and optional:
        return
    about = f"{spec.name}={value!r}"
    fits = isinstance(value, kind) and not (kind is not bool and isinstance(value, bool))
    if kind is tuple:
        fits = fits and all(isinstance(part, int) for part in value)
    if not fits:
        name = "list of whole numbers" if kind is tuple else kind.__name__
        raise ValueError(f"{about} is not a {name}. {spec.metadata['help']}")
    choices, least, below = (spec.metadata[key] for key in ("choices", "least", "below"))
    if choices and value not in choices:
        raise ValueError(f"{about} is unknown.{did_you_mean(value, choices)} Use {choices}.")
    for number in value if kind is tuple else [value]:
        if least is not None and not least <= number < (float("inf") if below is None else below):
            limit = "" if below is None else f" and less than {below}"
            raise ValueError(f"{about}: use at least {least}{limit}.")


def read_config(path: Path | None, flags: Mapping[str, Any]) -> Config:
    """Makes a configuration of a YAML file and flags, which go first.

    Raises:
        ValueError: the file is no YAML mapping, or as for ``Config.from_values``.
        FileNotFoundError: there is no such file.
    """
    values = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} does not hold 'key: value' lines.")
    return Config.from_values({**values, **flags})


def save_config(config: Config, begun: bool) -> None:
    """Writes the configuration into the folder of the run.

    Args:
        config: of the run.
        begun: whether an epoch is complete: then it must be the configuration that is there.

    Raises:
        ValueError: the run was begun with another configuration.
    """
    path, text = config.folder / _FILE, config.to_yaml()
    if begun and path.exists():
        before, now = yaml.safe_load(path.read_text()), yaml.safe_load(text)
        changed = [key for key in now if key != "run" and before.get(key) != now[key]]
        if changed:
            several = "; ".join(f"{key}: {before.get(key)!r}, now {now[key]!r}" for key in changed)
            raise ValueError(
                f"{config.run} holds a run of another configuration ({several}). Go on with the "
                "old one, or choose another --run."
            )
        return
    with written_whole(path) as file:
        file.write(text.encode())


def config_options(command: Callable) -> Callable:
    """Adds to a click command ``--config FILE`` and a flag for each field."""
    for spec in reversed(dataclasses.fields(Config)):
        kind, _ = _kind(spec)
        flag, choices = "--" + spec.name.replace("_", "-"), spec.metadata["choices"]
        more: dict[str, Any] = {"type": click.Choice(choices) if choices else kind}
        if kind is bool:
            flag, more = f"{flag}/--no-{flag[2:]}", {}
        elif kind is tuple:
            more = {"type": int, "multiple": True}
        shown = "" if spec.default in (None, "") else f"  [default: {spec.default}]"
        help = spec.metadata["help"] + shown
        command = click.option(flag, spec.name, default=None, help=help, **more)(command)
    path = click.Path(path_type=Path)
    return click.option("--config", "path", type=path, help="A YAML file of them.")(command)
