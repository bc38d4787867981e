"""``cam-tf bulk``: any number of images, by an exported SavedModel on Apache Beam."""

import json
import shlex

import click

from cam_tf.cli.common import COUNT, errors_in_a_line, quiet_tensorflow, with_options

_OPTIONS = (
    click.option("--model", required=True, help="A directory that 'cam-tf export' wrote."),
    click.option(
        "-o", "--output", required=True, help="The directory to write to, or such as gs://..."
    ),
    click.option(
        "--source",
        type=click.Choice(["files", "tfrecord"]),
        default="files",
        show_default=True,
        help="JPEG and PNG files, or TFRecord files of tf.train.Example.",
    ),
    click.option(
        "--format",
        type=click.Choice(["tfrecord", "parquet"]),
        default="tfrecord",
        show_default=True,
        help="Of the answers.",
    ),
    click.option("--batch-size", type=COUNT, default=32, show_default=True),
    click.option(
        "--shard-size",
        type=COUNT,
        default=500,
        show_default=True,
        help="Images in a file of answers.",
    ),
    click.option("--workers", type=COUNT, help="Processes; default: one for each two cores."),
    click.option("--overwrite", is_flag=True, help="Replace the answers of another run."),
    click.option(
        "--beam", default="", help="Beam's own options, such as '--runner=FlinkRunner ...'."
    ),
)


@click.command()
@click.argument("patterns", nargs=-1, required=True)
@with_options(*_OPTIONS)
def bulk(patterns: tuple[str, ...], model: str, output: str, beam: str, **options) -> None:
    """Answer the images that match PATTERNS with classes, scores, maps and boxes.

    Writes shards of TFRecord or Parquet; images that cannot be answered are listed with the reason.
    The same command goes on after a kill. It runs in processes of this machine, or with --beam on
    any of Beam's runners.

    \b
      cam-tf export models/lite0/1
      cam-tf bulk 'photos/**' --model models/lite0/1 -o answers --workers 4
      cam-tf bulk 'gs://b/*.tfrecord' --source tfrecord --model gs://b/m/1 -o gs://b/answers \\
          --beam '--runner=DataflowRunner --project=P --region=R --temp_location=gs://b/tmp'
    """  # noqa: D301 - \b keeps click from wrapping what follows
    with errors_in_a_line():
        with quiet_tensorflow():
            from cam_tf.export.beam import explain_in_bulk
        found = explain_in_bulk(patterns, model, output, options=shlex.split(beam), **options)
    click.echo(json.dumps(found))
