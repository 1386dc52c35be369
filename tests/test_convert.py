"""mobilenet-ext convert."""

import pathlib

import pytest
import torch

from mobilenet_ext import FusedMobileNet, cli, load_pretrained, save_pretrained


def state_of(path: pathlib.Path) -> dict[str, torch.Tensor]:
    return load_pretrained(path).state_dict()


@pytest.mark.parametrize("to", ["huggingface", "timm"])
def test_there_and_back(
    tmp_path: pathlib.Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = FusedMobileNet(5, 1.0, padding="torch", bn_eps=1e-4)
    start = save_pretrained(model, tmp_path / "a.safetensors", class_names="abcde")
    theirs, back = tmp_path / "theirs", tmp_path / "b.safetensors"
    assert cli.main(["convert", str(start), str(theirs), "--to", to]) == 0
    assert f"wrote {theirs} ({to}): alpha 1, 5 classes" in capsys.readouterr().out
    assert (theirs / "config.json").is_file()
    assert cli.main(["convert", str(theirs), str(back)]) == 0
    before, after = state_of(start), state_of(back)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    loaded = load_pretrained(back)
    assert (loaded.class_names, loaded.config["bn_eps"]) == (tuple("abcde"), 1e-4)


def test_options(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, end = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_pretrained(FusedMobileNet(1001, 0.25), start)
    assert cli.main(["convert", str(start), str(end), "--drop-background"]) == 0
    expected = state_of(start)["classifier.weight"][1:]
    assert torch.equal(state_of(end)["classifier.weight"], expected)
    options = ["--num-classes", "3", "--padding", "same"]
    assert cli.main(["convert", str(start), str(end), *options]) == 0
    assert "warning: " in capsys.readouterr().err
    config = load_pretrained(end).config
    assert (config["num_classes"], config["padding"]) == (3, "same")


def test_errors_are_told(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MOBILENET_EXT_CACHE", str(tmp_path / "cache"))
    output = str(tmp_path / "b.safetensors")
    for source, message in [
        (str(tmp_path / "missing.h5"), "cannot be read: No such file"),
        ("keras/mobilenet_1_0_224", "not in the cache, and offline"),
        ("keras/mobilenet", "expected a file or one of"),
    ]:
        assert cli.main(["convert", source, output, "--offline"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("mobilenet-ext: error: ")
        assert message in error
    assert not list(tmp_path.iterdir())
