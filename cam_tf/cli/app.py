"""``cam-tf app``: a page on this machine that explains the photos that are uploaded to it."""

import click

import cam_tf
from cam_tf.cli.common import (
    COUNT,
    MODEL,
    class_names,
    errors_in_a_line,
    load_sized,
    quiet_tensorflow,
    with_options,
)

_METHODS = ("cam", "gradcam", "gradcam++", "layercam", "hirescam", "xgradcam", "eigencam")


@click.command()
@with_options(
    *MODEL,
    click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: every network."),
    click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True),
    click.option(
        "--max-megabytes", type=COUNT, default=20, show_default=True, help="Of an uploaded photo."
    ),
)
def app(host: str, port: int, max_megabytes: int, **options) -> None:
    """Serve a page on which photos are uploaded and explained, on this machine alone."""
    with errors_in_a_line():
        with quiet_tensorflow():
            page = build_app(**options)
        click.echo(f"http://{host}:{port}")
        page.launch(
            server_name=host,
            server_port=port,
            max_file_size=max_megabytes * 2**20,
            show_error=True,
            quiet=True,
        )


def build_app(model: str, weights=None, preprocess=None, labels=None):
    """Builds the page: a photo, a network and a method in; a figure and a line of text out.

    Args:
        model: the network to begin with; backbones with ImageNet weights in this environment can
            be chosen besides.
        weights: its weights.
        preprocess: of a model file.
        labels: its class names.

    Returns:
        A ``gradio.Blocks``.

    Raises:
        ImportError: gradio is not installed.
        ValueError: see ``load_classifier``.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            'cam-tf app needs gradio, which is not installed: pip install "cam-tf[app]".'
        ) from error
    first = load_sized(None, model, weights, preprocess)
    choices = [first.name]
    if first.name != "EfficientNetLite0":
        choices.append("EfficientNetLite0")  # its weights are installed with cam_tf
    loaded = {first.name: first}

    def explain(path: str | None, name: str, method: str, top_k: float, threshold: float):
        try:
            return _explained(loaded, path, name, method, int(top_k), threshold, labels)
        except (ValueError, TypeError, OSError) as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title="Class activation maps", analytics_enabled=False) as page:
        gradio.Markdown("# Where does the network look?\nThe photo stays on this machine.")
        with gradio.Row():
            with gradio.Column():
                photo = gradio.File(label="Photo", file_types=["image"], type="filepath")
                name = gradio.Dropdown(choices, value=first.name, label="Network")
                method = gradio.Dropdown(list(_METHODS), value="cam", label="Method")
                top_k = gradio.Slider(1, 5, value=3, step=1, label="Classes")
                threshold = gradio.Slider(0, 0.95, value=0.2, step=0.05, label="Box threshold")
                button = gradio.Button("Explain", variant="primary")
            with gradio.Column():
                figure = gradio.Image(label="Explanation", format="png")
                text = gradio.Textbox(label="Classes")
        button.click(
            explain, [photo, name, method, top_k, threshold], [figure, text], api_name="explain"
        )
    return page


def _explained(loaded: dict, path, name, method, top_k, threshold, labels) -> tuple:
    """The figure (H, W, 3) and the classes of one photo."""
    import io

    from PIL import Image

    from cam_tf.maps.methods import find_method

    if path is None:
        raise ValueError("choose a photo first.")
    photo = cam_tf.load_image(path)
    if name not in loaded:
        loaded[name] = load_sized(None, name, None, None)
    classifier = loaded[name]
    explain = find_method(method)(classifier.model)
    count = explain.anatomy.classes
    names = class_names(labels, classifier, count)
    result = explain(classifier.images([photo]), top_k=min(top_k, count)).numpy()
    drawn = cam_tf.plot(photo, result, names, threshold=threshold, bar_label=explain.unit)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    lines = []
    for class_id, score, state in zip(
        result.class_ids[0], result.scores[0], result.diagnosis()[0], strict=True
    ):
        shown = names[class_id] if names else f"class {class_id}"
        note = "" if state.status == "fine" else f" (map {state.status}: {state.advice})"
        lines.append(f"{shown}: {score:.1%}{note}")
    return Image.open(buffer).convert("RGB"), "\n".join(lines)
