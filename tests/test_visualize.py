"""`fastssl visualize` as a user types it: the sheets show what was computed, and what every wrong word is answered."""

from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from drawn_pictures import draw
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
from fastssl import augment
from fastssl.cli import main, visualize
from fastssl.cli.visualize.encoders import shrink
from fastssl.cli.visualize.options import choose
from fastssl.cli.visualize.views import TRANSFORMS
from fastssl.data import read_image
from fastssl.models.encoder import load_encoder
from fastssl.models.patches import patch_attention, patch_features
from fastssl.report.components import as_colors, principal_components
from fastssl.report.contact_sheet import Row, contact_sheet
from fastssl.report.drawing import denormalize
from fastssl.report.heat import heat, keep_mass


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Two pictures in a folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw(60, 90, seed=1)).save("wide.png")
    Image.fromarray(draw(80, 50, seed=2)).convert("L").save("tall.png")
    return ["wide.png", "tall.png"]


def sheet(path="views.png"):
    return np.asarray(Image.open(path).convert("RGB"))


def holds(sheet, pixels):
    """Whether the sheet has this picture somewhere, pixel by pixel."""
    height, width = pixels.shape[:2]
    for y, x in np.argwhere((sheet == pixels[0, 0]).all(-1)):
        if np.array_equal(sheet[y : y + height, x : x + width], pixels):
            return True
    return False


def test_as_a_user_types_it(pictures):
    done = commands.run("visualize", "views", "simclr", "--data", *pictures, "--transform.input_size", "96")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 images, 2 views each: views.png\n" and done.stderr == ""
    assert sheet().shape[0] > 2 * 96


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_view_of_every_transform_is_on_the_sheet(name, pictures):
    assert main(["visualize", "views", name, "--data", *pictures, "--seed", "5", "--epoch", "2"]) == 0
    transform = getattr(augment, TRANSFORMS[name])()
    images = [read_image(path) for path in pictures]
    views = transform(images, seed=5, epoch=2, index=torch.arange(2), channels="first")
    mean, std = (torch.tensor(values)[:, None, None] for values in (augment.IMAGENET_MEAN, augment.IMAGENET_STD))
    drawn = sheet()
    for view in views:
        for pixels in ((view * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy():
            assert holds(drawn, pixels)


def test_small_views_are_enlarged_by_a_whole_factor(pictures):
    assert main(["visualize", "views", "mae", "--data", "wide.png", "--transform.input_size=32"]) == 0
    view = augment.MAETransform(32)([read_image("wide.png")], seed=0, index=torch.zeros(1, dtype=torch.int64))[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (augment.IMAGENET_MEAN, augment.IMAGENET_STD))
    pixels = ((view * std + mean).clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0).numpy()
    assert holds(sheet(), pixels.repeat(5, 0).repeat(5, 1))


def test_seed_epoch_and_options_change_the_sheet(pictures):
    arguments = ["visualize", "views", "simclr", "--data", "wide.png", "--transform.input_size=64"]
    sheets = []
    for number, more in enumerate(([], ["--seed=1"], ["--epoch=1"], ["--transform.min_scale=0.9"], [])):
        assert main([*arguments, *more, f"--out={number}.png"]) == 0
        sheets.append(sheet(f"{number}.png")[50:])  # below the title
    assert np.array_equal(sheets[0], sheets[4])
    for other in sheets[1:4]:
        assert not np.array_equal(sheets[0], other)


def test_a_folder_and_the_photographs_are_evenly_spread(pictures, tmp_path):
    for number in range(10):
        Image.fromarray(draw(20, 20, seed=number)).save(tmp_path / f"{number}.png")
    files, places = choose([str(tmp_path)], 3)
    assert places == [0, 6, 11] and [file.name for file in files] == ["0.png", "6.png", "wide.png"]
    assert choose([str(tmp_path)], 100)[1] == list(range(12))
    assert choose([str(tmp_path)], 1)[1] == [0]
    assert len(choose(["photos"], 8)[0]) == 8


def test_a_frame_in_the_image_shows_where_a_view_comes_from():
    image = torch.zeros(3, 200, 300, dtype=torch.uint8)
    row = Row("name", image, [image[:, :160, :160]], [(150.0, 50.0, 250.0, 150.0)], [""])
    drawn = np.asarray(contact_sheet("title", [row]))
    column = (drawn == (0x1F, 0x77, 0xB4)).all(-1)
    ys, xs = np.nonzero(column[:, : 16 + 240])  # the image is shown 240 x 160
    assert abs(np.ptp(xs) - 100 * 0.8) <= 4 and abs(np.ptp(ys) - 100 * 0.8) <= 4
    assert abs(xs.min() - 16 - 150 * 0.8) <= 3


def test_a_sheet_is_not_written_over_unless_asked(pictures, capsys):
    arguments = ["visualize", "views", "mae", "--data", "wide.png", "--transform.input_size=32"]
    Path("views.png").write_text("precious")
    assert main(arguments) == 2
    assert "'views.png' is there already; give another name, or --overwrite" in capsys.readouterr().err
    assert Path("views.png").read_text() == "precious"
    assert main([*arguments, "--overwrite"]) == 0
    assert main([*arguments, "--out", "a/b/c.png"]) == 0 and Path("a/b/c.png").is_file()


def test_attention_is_drawn_head_by_head_with_its_mean_and_masks(pictures, capsys):
    arguments = ["attention", "test_vit", "--data", *pictures, "--size", "100", "--seed", "3", "--threshold", "0.6"]
    assert main(["visualize", *arguments]) == 0
    assert capsys.readouterr().out == "2 images, 2 heads: attention.png\n"
    torch.manual_seed(3)
    encoder = load_encoder("test_vit")
    encoder.resize(96)  # six patches of 16
    x = encoder.transform([read_image(path) for path in pictures], channels="first")
    maps = patch_attention(encoder.backbone, x).maps
    maps = torch.cat([maps, maps.mean(1, keepdim=True)], 1)
    drawn = sheet("attention.png")
    assert maps.shape == (2, 3, 6, 6)
    for of_image in maps:
        for map_ in of_image:
            assert holds(drawn, heat(map_.double()).repeat(37, 0).repeat(37, 1))  # 6 x 37 pixels, about 224
    masks = keep_mass(maps, 0.6)[0].numpy().repeat(37, 1).repeat(37, 2)
    picture = shrink(denormalize(x, encoder.statistics)[0], 222)
    assert holds(drawn, picture)
    for mask in masks:
        assert holds(drawn, np.where(mask[..., None], picture, (picture * 0.15 + 128 * (1 - 0.15)).astype("uint8")))


def test_without_a_threshold_there_are_no_masks(pictures):
    arguments = ["visualize", "attention", "test_vit", "--data", *pictures, "--size=64"]
    assert main([*arguments, "--out=plain.png"]) == 0
    assert main([*arguments, "--out=masks.png", "--threshold=0.5"]) == 0
    plain, masks = sheet("plain.png"), sheet("masks.png")
    assert masks.shape[0] - plain.shape[0] > 300 and masks.shape[1] == plain.shape[1]


@pytest.mark.parametrize(("source", "grid"), [("test_vit", 6), ("test_resnet", 3)])
def test_colors_are_components_over_all_images_together(source, grid, pictures, capsys):
    arguments = ["pca", source, "--data", *pictures, "--size", "96", "--seed", "3"]
    assert main(["visualize", *arguments]) == 0
    torch.manual_seed(3)
    encoder = load_encoder(source)
    encoder.resize(96)
    x = encoder.transform([read_image(path) for path in pictures], channels="first")
    features = patch_features(encoder.backbone, x)
    grid = features.shape[1]
    assert capsys.readouterr().out == f"2 images, {grid} x {grid} patches each: pca.png\n"
    colors = as_colors(principal_components(features.flatten(0, 2)).scores).view(2, grid, grid, 3).numpy()
    zoom, drawn = round(224 / grid), sheet("pca.png")
    for of_image in colors:
        assert holds(drawn, of_image.repeat(zoom, 0).repeat(zoom, 1))


def test_background_is_black(pictures):
    assert main(["visualize", "pca", "test_vit", "--data", *pictures, "--size=96", "--foreground"]) == 0
    black = (sheet("pca.png") == 0).all(-1)
    assert black.sum() > 37 * 37  # a patch at least


def test_large_photographs_are_drawn_as_small_as_others(pictures):
    Image.fromarray(draw(1500, 2300, seed=4)).save("large.jpg")
    assert main(["visualize", "pca", "test_vit", "--data", "large.jpg", "--size=64"]) == 0
    assert max(sheet("pca.png").shape) < 1000


def test_broken_weights_are_named_and_not_drawn(pictures, capsys, monkeypatch):
    def broken(*arguments, **options):
        encoder = load_encoder(*arguments, **options)
        torch.nn.init.constant_(next(encoder.parameters()), float("nan"))
        return encoder

    monkeypatch.setattr("fastssl.models.encoder.load_encoder", broken)
    for picture, what in (("attention", "attention"), ("pca", "features")):
        assert main(["visualize", picture, "test_vit", "--data", "wide.png", "--size=64"]) == 2
        message = f"test_vit (untrained): its {what} has numbers that are not finite"
        assert message.replace("features has", "features have") in capsys.readouterr().err
    assert not Path("pca.png").exists() and not Path("attention.png").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["attention", "test_vti"], 2, "'test_vti' is no file, no folder and no timm model; did you mean test_vit"),
        (["attention", "runs/none/last.ckpt"], 2, "there is no file or folder 'runs/none/last.ckpt'"),
        (["attention", "test_resnet"], 2, "the backbone must be a vision transformer, got ResNet"),
        (["attention", "test_vit", "--size=7"], 2, "--size must be at least 16, the side of a patch of the backbone"),
        (["attention", "test_vit", "--size=0"], 2, "--size must be at least 1, got 0"),
        (["attention", "test_vit", "--threshold=60"], 2, "--threshold must be between 0 and 1, got 60.0"),
        (["attention", "test_vit", "--treshold=0.6"], 2, "no option '--treshold'; did you mean --threshold"),
        (["attention", "test_vit", "--seed=-1"], 2, "--seed must be in [0, 2^64), got -1"),
        (["pca", "test_vit", "--images=0"], 2, "--images must be at least 1, got 0"),
        (["pca", "test_vit", "--interpolation=cubic"], 2, "invalid choice: 'cubic'"),
        (["pca", "test_vit", "--out=a.gif"], 2, "--out must end in .png, got 'a.gif'"),
        (["pca", "--size=64"], 2, "the following arguments are required: source"),
        (["pca", "wide.png"], 2, "'wide.png' is no checkpoint"),
        (["pca", "mixer_s32_224", "--size=64"], 2, "--size: mixer_s32_224 (untrained) takes no images of 64 pixels"),
        (["faces"], 2, "fastssl visualize: no picture 'faces'; choose from views"),
        (["views", "simcrl"], 2, "no transform 'simcrl'; did you mean simclr"),
        (["views", "simclr", "--sed", "1"], 2, "no option '--sed'; did you mean --seed"),
        (
            ["views", "simclr", "--transform.input_sise=3"],
            2,
            "no option '--transform.input_sise'; did you mean --transform.input",
        ),
        (["views", "simclr", "--transform.cj_prob=2"], 2, "ColorJitter: p must be from 0 to 1, got 2.0"),
        (["views", "simclr", "--images=0"], 2, "--images must be at least 1, got 0"),
        (["views", "simclr", "--seed=-1"], 2, "--seed must be in [0, 2^64), got -1"),
        (["views", "simclr", "--epoch=4294967296"], 2, "--epoch must be in [0, 2^32), got 4294967296"),
        (["views", "simclr", "--out=views.jpg"], 2, "--out must end in .png, got 'views.jpg'"),
        (["views", "simclr", "--out=wide.png/v.png"], 2, "--out: cannot write 'wide.png/v.png': "),
        (["views", "simclr", "--data", "no.jpg"], 2, "there is no file 'no.jpg'; "),
        (["views", "simclr", "--data", "phtos"], 2, "there is no file 'phtos'; did you mean photos?"),
        (["views", "simclr", "--data", "wide.jpg"], 2, "there is no file 'wide.jpg'; did you mean wide.png"),
        (["views", "simclr", "--data", "empty"], 2, "--data: no picture in the folder 'empty'"),
        (["views", "simclr", "--data", "text.jpg"], 1, "cannot read text.jpg: it is no picture of a known format"),
    ],
)
def test_a_wrong_word_gives_one_clear_line(arguments, status, message, pictures, capsys):
    Path("empty").mkdir()
    Path("text.jpg").write_text("no picture")
    before = sorted(path.name for path in Path().iterdir())
    data = [] if "--data" in arguments or len(arguments) < 3 else ["--data", "wide.png"]
    assert main(["visualize", *arguments, *data]) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(path.name for path in Path().iterdir()) == before


def test_help_and_a_missing_extra(capsys, monkeypatch):
    for arguments in ([], ["--help"]):
        assert main(["visualize", *arguments]) == 0
        assert "usage: fastssl visualize <picture>" in capsys.readouterr().out
    for arguments in (["views"], ["views", "-h"]):
        assert main(["visualize", *arguments]) == 0
        assert "usage: fastssl visualize views <transform>" in capsys.readouterr().out
    for picture in ("attention", "pca"):
        assert main(["visualize", picture]) == 0
        assert f"usage: fastssl visualize {picture} <source>" in capsys.readouterr().out
    options = {"views dino": "--transform.local_crop_size", "attention x": "--threshold", "pca x": "--foreground"}
    for picture, option in options.items():
        with pytest.raises(SystemExit) as stop:
            main(["visualize", *picture.split(), "--help"])
        assert stop.value.code == 0 and option in capsys.readouterr().out
    monkeypatch.setattr(visualize, "_EXTRA", ("no_such_module",))
    for picture in ("views simclr", "attention test_vit"):
        assert main(["visualize", *picture.split()]) == 1
        printed = capsys.readouterr().err
        assert 'needs the training extra: pip install "fastssl[train]" (missing: no_such_module)' in printed
