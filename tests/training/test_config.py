import shutil

import click
import pytest
import yaml
from click.testing import CliRunner

from training.config import Config, config_options, read_config, save_config
from training.train import main


def test_the_file_is_read_and_flags_go_first(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("run: r\ndata: d\nlearning_rate: 1e-3\nema: 1\nhead_conv: [8, 4]\nepochs: 3\n")
    with pytest.raises(ValueError, match=r"ema=1\.0: use at least 0 and less than 1"):
        read_config(path, {})
    config = read_config(path, {"ema": 0.9, "epochs": 5})
    assert (config.learning_rate, config.head_conv, config.epochs) == (0.001, (8, 4), 5)
    assert Config.from_values(yaml.safe_load(config.to_yaml())) == config


def test_every_field_is_a_flag():
    found = []
    command = click.command()(config_options(lambda path, **flags: found.append(flags)))
    arguments = "--head-conv 8 --head-conv 4 --no-augment --ema 0.5 --pooling max"
    result = CliRunner().invoke(command, arguments.split(), catch_exceptions=False)
    assert result.exit_code == 0
    given = {name: value for name, value in found[0].items() if value not in (None, ())}
    assert given == {"head_conv": (8, 4), "augment": False, "ema": 0.5, "pooling": "max"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "'learning_rat' is no key .* Did you mean 'learning_rate'"),
        ("epochs: many", "epochs='many' is not a int"),
        ("epochs: true", "epochs=True is not a int"),
        ("epochs: 0", "there is nothing to train"),
        ("head_conv: [a]", "is not a list of whole numbers"),
        ("pooling: mx", "pooling='mx' is unknown"),
        ("batch_size: 0", "batch_size=0: use at least 1"),
        ("data: ''", "--data is missing"),
        ("- a", "does not hold 'key: value' lines"),
        ("a: b: c", "is not YAML"),
        ("xla: true", "xla does not go with deterministic operations"),
        ("{strategy: mirrored, gradient_accumulation: 2}", "goes with strategy 'one' only"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    base = {"run": "r", **({} if "data" in text else {"data": "d"})}
    with pytest.raises(ValueError, match=message):
        read_config(path, base)


def test_a_run_keeps_its_configuration(tmp_path):
    config = Config(run=str(tmp_path), data="d")
    save_config(config, begun=False)
    save_config(config, begun=True)
    other = Config(run=str(tmp_path), data="d", seed=3)
    with pytest.raises(ValueError, match=r"another configuration \(seed: 0, now 3\)"):
        save_config(other, begun=True)
    save_config(other, begun=False)  # the first one led nowhere
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] == 3


def invoke(settings: dict, tmp_path) -> str:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(main, ["--config", str(path)])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return result.output


def test_data_that_do_not_fit(settings, tmp_path, colours):
    assert "Did you mean" in invoke({**settings, "data": "cluttered_digit/64"}, tmp_path)
    (tmp_path / "one" / "train" / "cat").mkdir(parents=True)
    image = next((colours / "train" / "red").iterdir()).read_bytes()
    (tmp_path / "one" / "train" / "cat" / "a.png").write_bytes(image)
    found = invoke({**settings, "data": str(tmp_path / "one")}, tmp_path)
    assert "class" in found and "cat" in found


def test_an_interrupted_download_ends_clearly(settings, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("connection reset by peer")

    monkeypatch.setattr("training.data.training_data", fail)
    found = invoke(settings, tmp_path)
    assert "connection reset by peer" in found and "no epoch was complete" in found


def test_unknown_layers_and_networks(settings, tmp_path, tiny_network):
    found = invoke({**settings, "fine_tune_from": "block2_con"}, tmp_path)
    assert "Did you mean 'block2_conv'" in found
    found = invoke({**settings, "backbone": "MobileNetV9"}, tmp_path)
    assert "Did you mean" in found and "MobileNetV2" in found


def test_a_strict_run_ends_at_a_bad_image_and_names_it(settings, tmp_path, colours, tiny_network):
    data = tmp_path / "data"
    shutil.copytree(colours, data)
    (data / "train" / "red" / "3.png").write_bytes(b"no image")
    found = invoke({**settings, "data": str(data), "strict": True}, tmp_path)
    assert "red/3.png" in found
