"""The commands of ``cam-tf``."""

import click

import cam_tf
from cam_tf.cli.app import app
from cam_tf.cli.bulk import bulk
from cam_tf.cli.common import errors_in_a_line, quiet_tensorflow
from cam_tf.cli.discover import discover
from cam_tf.cli.evaluate import evaluate
from cam_tf.cli.explain import demo, explain
from cam_tf.cli.export import export
from cam_tf.cli.faithfulness import faithfulness
from cam_tf.cli.report import report


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cam_tf.__version__, prog_name="cam-tf")
def main() -> None:
    """Class activation maps: why a Keras network calls a photo what it does."""


@main.command()
def backbones() -> None:
    """List the networks that --model takes."""
    with errors_in_a_line(), quiet_tensorflow():
        from cam_tf.networks.applications import BACKBONES
    click.echo(f"{'name':20} {'pixels':>7}  ImageNet classifier")
    for row in BACKBONES.values():
        head = "pretrained"
        if row.head == "other":
            head = "must be trained anew"
        elif row.body is not None:
            head = "from torchvision's file" if row.torchvision else "no weights published"
        click.echo(f"{row.name:20} {row.size:>3}x{row.size}  {head}")


for _command in (explain, demo, evaluate, faithfulness, export, bulk, report, discover, app):
    main.add_command(_command)
