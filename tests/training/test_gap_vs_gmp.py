import json

import numpy as np
import pytest
from click.testing import CliRunner

from training import gap_vs_gmp


def test_mean_and_sample_deviation(tmp_path):
    values = {name: [0.5, 0.6, 0.7] for name in gap_vs_gmp._FIGURES}
    values["accuracy"] = [0.25, 0.25, 0.25]
    gap_vs_gmp.write_table(tmp_path, [gap_vs_gmp.Row("GAP, stride 16", values)] * 2)
    line = (tmp_path / "table.md").read_text().splitlines()[-1]
    assert line == "| GAP, stride 16 | 25.0 ± 0.0 |" + " 60.0 ± 10.0 |" * 3
    assert json.loads((tmp_path / "table.json").read_text())[1]["values"] == values
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_the_threshold_is_chosen_in_validation(tmp_path, monkeypatch):
    calls = []
    truth = [np.array([[0.0, 0.0, 1.0, 0.5]])]
    overlap = {0.3: 0.2, 0.5: 0.9, 0.7: 0.4}

    def drawn(explained, threshold):
        width = 0.5 * overlap.get(threshold, 0.1)
        return np.array([[[0.0, 0.0, 1.0, width]]])

    class Measure:
        def set_model(self, model): ...
        def on_train_begin(self): ...
        def measure(self):
            return {"val_loc_gt_known": 0.25, "val_loc_top1_error": 0.75}

    def callback(config, split, *, threshold):
        calls.append((split, threshold))
        return Measure()

    monkeypatch.setattr(gap_vs_gmp, "boxes", drawn)
    monkeypatch.setattr(gap_vs_gmp, "load_keras_file", lambda path: None)
    monkeypatch.setattr(gap_vs_gmp, "CAM", lambda model: lambda images, ids: None)
    monkeypatch.setattr(gap_vs_gmp, "annotated", lambda config, split: (None, None, truth, None))
    monkeypatch.setattr(gap_vs_gmp, "localization_callback", callback)
    config = gap_vs_gmp.Config(run=str(tmp_path), data="d", test_split="test")
    found = gap_vs_gmp.at_chosen_threshold(config)
    assert calls == [("test", 0.5)]
    assert found == {"chosen_threshold": 0.5, "chosen_gt_known": 0.25, "chosen_top1_error": 0.75}
    assert gap_vs_gmp.at_chosen_threshold(config) == found and len(calls) == 1  # from the file


@pytest.mark.slow
def test_the_experiment_in_little(tmp_path, monkeypatch):
    monkeypatch.setattr(gap_vs_gmp, "_STRIDES", (8,))
    arguments = ["--runs", str(tmp_path), "--seeds", "2", "--epochs", "1"]
    arguments += ["--test-split", "validation", "--data-dir", str(tmp_path / "data")]
    done = CliRunner().invoke(gap_vs_gmp.main, arguments)
    assert done.exit_code == 0, done.output
    assert "| GAP, stride 8 |" in done.output and "| GMP, stride 8 |" in done.output
