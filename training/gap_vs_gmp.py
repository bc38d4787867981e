"""Average against maximum pooling, and output stride 16 against 8: accuracy and localization.

    python -m training.gap_vs_gmp --runs runs/gap_vs_gmp

Trains SmallVGG on ``cluttered_digits/64`` for each combination and seed, each in a folder of its
own, and measures the weights after the last epoch on the test split (1,000 images). The paper's
20 % rule was made for maps of 14 x 14, and these have 4 x 4 at stride 16: so boxes are measured
also with the threshold that is best in validation. Started again after a kill, it goes on where it
was. Writes ``table.json``, ``table.md`` and ``table.png``.
"""

import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
from matplotlib.figure import Figure

from cam_tf.files import written_whole
from cam_tf.localization.boxes import boxes
from cam_tf.localization.metrics import GTKnown
from cam_tf.maps.cam import CAM
from cam_tf.networks.loading import load_keras_file
from training.checkpoints import LAST, TrainingError
from training.config import Config
from training.outputs import annotated, localization_callback
from training.train import train

_POOLINGS = {"avg": "GAP", "max": "GMP"}
_STRIDES = (16, 8)
_FIGURES = {
    "accuracy": "classification accuracy",
    "loc_maxboxaccv2": "MaxBoxAccV2",
    "loc_top1_error": "top-1 loc. error, 20 % rule",
    "chosen_top1_error": "the same, chosen threshold",
}
_THRESHOLDS = [percent / 100 for percent in range(10, 95, 5)]
_CHOSEN = "chosen_threshold.json"


class Row(NamedTuple):
    """One combination; ``values[figure]`` has a number for each seed."""

    name: str
    values: dict[str, list[float]]


@click.command(help=__doc__.partition("\n")[0])
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Where to write.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=6, show_default=True)
@click.option("--data", default="cluttered_digits/64", show_default=True)
@click.option("--data-dir", help="Where TFDS keeps its data.")
@click.option("--test-split", default="test", show_default=True)
def main(runs: Path, seeds: int, **settings) -> None:
    """Trains all combinations and writes the table."""
    try:
        rows = [
            experiment(runs, pooling, stride, seeds, settings)
            for pooling, stride in itertools.product(_POOLINGS, _STRIDES)
        ]
    except (TrainingError, ValueError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    write_table(runs, rows)
    click.echo((runs / "table.md").read_text())


def experiment(runs: Path, pooling: str, stride: int, seeds: int, settings: dict) -> Row:
    """Trains one combination with each seed, as far as that was not done before."""
    values: dict[str, list[float]] = {figure: [] for figure in _FIGURES}
    for seed in range(seeds):
        config = Config(
            run=str(runs / f"{pooling}_stride{stride}_seed{seed}"),
            image_size=64,
            backbone="SmallVGG",
            pooling=pooling,
            output_stride=stride,
            batch_size=64,
            learning_rate=2e-3,
            warmup_epochs=0.5,
            localization_images=100,
            seed=seed,
            **settings,
        )
        found = {**train(config)["last"], **at_chosen_threshold(config)}
        for figure in _FIGURES:
            values[figure].append(found[figure])
    return Row(f"{_POOLINGS[pooling]}, stride {stride}", values)


def at_chosen_threshold(config: Config) -> dict[str, float]:
    """Measures on the test split with the threshold whose GT-known is best in validation."""
    path = config.folder / _CHOSEN
    if path.exists():
        return json.loads(path.read_text())
    model = load_keras_file(config.folder / LAST)
    images, class_ids, true_boxes, _ = annotated(config, config.validation_split)
    explained = CAM(model)(images, class_ids)
    known = {}
    for threshold in _THRESHOLDS:
        metric = GTKnown()
        metric.update(boxes(explained, threshold=threshold)[:, 0], true_boxes)
        known[threshold] = metric.result()["gt_known"]
    chosen = max(known, key=known.get)
    measure = localization_callback(config, config.test_split, threshold=chosen)
    measure.set_model(model)
    measure.on_train_begin()
    found = measure.measure()
    figures = {
        "chosen_threshold": chosen,
        "chosen_gt_known": found["val_loc_gt_known"],
        "chosen_top1_error": found["val_loc_top1_error"],
    }
    with written_whole(path) as file:
        file.write(json.dumps(figures, indent=2).encode())
    return figures


def write_table(folder: Path, rows: Sequence[Row]) -> None:
    """Writes the rows as JSON, Markdown (mean and standard deviation over seeds) and a figure."""
    seeds = len(next(iter(rows[0].values.values())))
    lines = [f"| {seeds} seeds | {' | '.join(_FIGURES.values())} |", "|---" * 5 + "|"]
    for row in rows:
        cells = [_mean_and_spread(row.values[figure]) for figure in _FIGURES]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    with written_whole(folder / "table.json") as file:
        file.write(json.dumps([row._asdict() for row in rows], indent=2).encode())
    with written_whole(folder / "table.md") as file:
        file.write(("\n".join(lines) + "\n").encode())
    with written_whole(folder / "table.png") as file:
        _figure(rows).savefig(file, format="png")


def _mean_and_spread(values: Sequence[float]) -> str:
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}"


def _figure(rows: Sequence[Row]) -> Figure:
    """One panel for each figure: a dot for each seed, a line at the mean."""
    figure = Figure(figsize=(2.4 * len(_FIGURES), 2.2), dpi=150, layout="constrained")
    for axes, (name, title) in zip(
        figure.subplots(1, len(_FIGURES)), _FIGURES.items(), strict=True
    ):
        for place, row in enumerate(rows):
            shares = [100 * value for value in row.values[name]]
            axes.plot([place] * len(shares), shares, "o", markersize=4, alpha=0.7)
            axes.hlines(statistics.mean(shares), place - 0.3, place + 0.3, color="0.3", linewidth=1)
        axes.set_xticks(
            range(len(rows)), [row.name.replace(", ", "\n") for row in rows], fontsize=6
        )
        axes.set_title(f"{title} (%)", fontsize=8)
        axes.tick_params(axis="y", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
