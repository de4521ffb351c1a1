"""`fastssl export` and `fastssl.load`: what was trained comes out of every file again; wrong words and files."""

import json
import resource
import sys
from pathlib import Path

import commands
import pytest
import torch

pytest.importorskip("lightning")
import timm
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fastssl
from fastssl.augment import IMAGENET_MEAN, IMAGENET_STD, EvalTransform
from fastssl.cli import export as command
from fastssl.cli import main
from fastssl.methods import DINO, MAE, SimCLR
from fastssl.models import create_backbone, export, load_encoder

_METHODS = {
    "resnet": lambda: SimCLR(backbone="resnet10t", size=32),
    "small": lambda: SimCLR(backbone="resnet10t", stem="small", size=32),
    "vit": lambda: DINO(backbone="vit_tiny_patch16_224", backbone_args={"depth": 2}, size=32, out_dim=16, hidden_dim=8),
    "mae": lambda: MAE(
        backbone="vit_tiny_patch16_224", backbone_args={"depth": 1}, size=32, mask_ratio=0.5, decoder_dim=16,
        decoder_depth=1, decoder_heads=2,
    ),
}  # fmt: skip


def method(kind):
    """One whose weights and statistics are no longer those of the start."""
    torch.manual_seed(0)
    model = _METHODS[kind]()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.02 * torch.rand_like(value)
    return model.eval()


def save(model, path):
    """A checkpoint as training writes it."""
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of each kind, and their methods."""
    root = tmp_path_factory.mktemp("runs")
    models = {}
    for kind in _METHODS:
        models[kind] = method(kind)
        (root / kind).mkdir()
        save(models[kind], root / kind / "last.ckpt")
    return root, models


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(images):
    return EvalTransform(32)(images)


@pytest.mark.parametrize("kind", ["resnet", "vit", "mae"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_loads_what_was_trained(kind, suffix, runs, images, tmp_path, capsys):
    root, models = runs
    path = tmp_path / f"backbone{suffix}"
    assert main(["export", str(root / kind), "--out", str(path)]) == 0
    line = capsys.readouterr().out.splitlines()[-1].strip()
    assert line.startswith("timm.create_model(") and repr(str(path)) in line
    loaded = eval(line).eval()  # the line that the command prints, as it stands
    x = normalised(images)
    with torch.no_grad():
        expected = models[kind](x)
        torch.testing.assert_close(loaded(x), expected)
    trained = models[kind].evaluated.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in loaded.state_dict().items())
    assert not torch.equal(models[kind].backbone(x), expected) or kind != "vit"  # of DINO it is the teacher


def test_metadata_say_how_to_build_the_model(runs, tmp_path):
    root, _ = runs
    path = tmp_path / "vit.safetensors"
    assert main(["export", str(root / "vit" / "last.ckpt"), "--out", str(path)]) == 0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "pt",
        "architecture": "vit_tiny_patch16_224",
        "kwargs": '{"img_size": 32, "dynamic_img_size": true, "depth": 2}',
        "stem": "timm",
        "size": "32",
        "mean": json.dumps(list(IMAGENET_MEAN)),
        "std": json.dumps(list(IMAGENET_STD)),
        "num_features": "192",
        "method": "DINO",
        "fastssl_format": "1",
        "fastssl_version": fastssl.__version__,
    }
    model = timm.create_model(metadata["architecture"], num_classes=0, **json.loads(metadata["kwargs"]))
    model.load_state_dict(load_file(path))  # strictly: every name, and no other


def test_the_description_beside_a_state_dict_says_the_same(runs, tmp_path):
    root, _ = runs
    assert main(["export", str(root / "vit"), "--format", "pytorch", "safetensors", "--out", str(tmp_path)]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["encoder.json", "encoder.pth", "encoder.safetensors"]
    with safe_open(tmp_path / "encoder.safetensors", framework="pt") as file:
        metadata = file.metadata()
    description = json.loads((tmp_path / "encoder.json").read_text())
    assert {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()} == {
        key: value for key, value in metadata.items() if key != "format"
    }
    weights = torch.load(tmp_path / "encoder.pth", weights_only=True)
    others = load_file(tmp_path / "encoder.safetensors")
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_small_stem_needs_fastssl(runs, images, tmp_path, capsys):
    root, models = runs
    path = tmp_path / "small.safetensors"
    assert main(["export", str(root / "small"), "--out", str(path)]) == 0
    assert "timm.create_model" not in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="conv1"):
        timm.create_model("resnet10t", num_classes=0, checkpoint_path=str(path))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    backbone = create_backbone(metadata["architecture"], metadata["stem"], json.loads(metadata["kwargs"])).eval()
    backbone.load_state_dict(load_file(path))
    with torch.no_grad():
        torch.testing.assert_close(backbone(normalised(images)), models["small"](normalised(images)))


@pytest.mark.parametrize("kind", _METHODS)
def test_load_gives_the_same_encoder_from_every_file(kind, runs, images, tmp_path):
    root, models = runs
    assert main(["export", str(root / kind), "--format", "safetensors", "pytorch", "--out", str(tmp_path)]) == 0
    with torch.no_grad():
        expected = models[kind](normalised(images))
    for path in (root / kind, root / kind / "last.ckpt", tmp_path / "encoder.safetensors", tmp_path / "encoder.pth"):
        encoder = fastssl.load(str(path))
        h = encoder(encoder.transform(images))
        assert torch.equal(h, expected) and not h.requires_grad
        assert not encoder.training and not any(module.training for module in encoder.modules())
        assert (encoder.size, encoder.num_features, encoder.method) == (32, h.shape[1], type(models[kind]).__name__)
        assert encoder.label == f"{encoder.method} {encoder.architecture.name}"
        assert encoder.has_projection == (path.suffix in ("", ".ckpt") and kind != "mae")
    with pytest.raises(ValueError, match="there is no projection"):
        encoder.project(h)
    encoder.requires_grad_(True).train()
    encoder(encoder.transform(images)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.backbone.parameters())


def test_statistics_and_another_size_come_back(tmp_path):
    encoder = load_encoder("vit_tiny_patch16_224", size=48)
    encoder.statistics = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    encoder.resize(64)
    export.write_safetensors(encoder, tmp_path / "vit.safetensors")
    loaded = fastssl.load(tmp_path / "vit.safetensors")
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    assert loaded.transform(white).unique().tolist() == [2.0]
    assert loaded.size == 64 and loaded(loaded.transform(white)).shape == (1, 192)


# ONNX


@pytest.mark.parametrize("kind", ["resnet", "vit", "mae"])
def test_onnx_gives_the_features_of_any_batch(kind, runs, tmp_path, capfd):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    root, models = runs
    path = tmp_path / "encoder.onnx"
    assert main(["export", "--format", "onnx", str(root / kind), "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr()
    assert printed.out.count("\n") == 2 and printed.err == ""
    with torch.no_grad():
        largest = models[kind](torch.randn(3, 3, 32, 32)).abs().max()
    assert 0 < float(printed.out.split()[-1]) < 1e-4 * largest
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,), (h,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(float)", [3, 32, 32])
    assert (h.name, h.type, h.shape[1:]) == ("h", "tensor(float)", [models[kind].num_features])
    assert isinstance(image.shape[0], str) and image.shape[0] == h.shape[0]
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["method"] == type(models[kind]).__name__ and metadata["size"] == "32"
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            expected = models[kind](x)
        found = torch.from_numpy(session.run(["h"], {"image": x.numpy()})[0])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    # What is compared is compared: the same graph is not that of another network.
    with pytest.raises(ValueError, match="the ONNX graph differs from PyTorch on 7 images: by "):
        export._onnx_error(path, _METHODS[kind]().backbone.eval(), x)


def test_large_weights_have_a_file_of_their_own_and_a_wrong_graph_leaves_none(tmp_path, monkeypatch, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder = load_encoder("test_resnet", size=32)
    monkeypatch.setattr(export, "_ONNX_LARGEST", 0)
    made, real = [], torch.onnx.export

    def export_once(*arguments, **options):
        if not made:
            made.append(real(*arguments, **options))
        return made[0]

    monkeypatch.setattr(torch.onnx, "export", export_once)
    export.write_onnx(encoder, tmp_path / "a.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    # The graph of other random weights.
    assert main(["export", "test_resnet", "--size=32", "--out", str(tmp_path / "b.onnx")]) == 1
    assert "b.onnx: the ONNX graph differs from PyTorch on 1 images" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]


def test_a_missing_extra_gives_one_line(runs, tmp_path, capsys, monkeypatch):
    root, _ = runs
    monkeypatch.setattr(export, "ONNX_MODULES", ("onnx_is_not_here",))
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(root / "vit"), "--format", "safetensors", "onnx", "--out", "out"]) == 1
    expected = 'fastssl export: ONNX needs an extra: pip install "fastssl[onnx]" (missing: onnx_is_not_here)\n'
    assert capsys.readouterr().err == expected and not list(tmp_path.iterdir())
    with pytest.raises(ModuleNotFoundError, match="ONNX needs an extra"):
        export.write_onnx(load_encoder("test_resnet"), tmp_path / "a.onnx")
    monkeypatch.setattr(command, "_EXTRA", ("no_such_module",))
    assert main(["export", str(root / "vit")]) == 1
    expected = 'fastssl export needs the training extra: pip install "fastssl[train]" (missing: no_such_module)\n'
    assert capsys.readouterr().err == expected


# Files


def test_as_a_user_types_it(runs, tmp_path):
    root, _ = runs
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").write_bytes((root / "resnet" / "last.ckpt").read_bytes())
    done = commands.run("export", "run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "SimCLR resnet10t: 4.9 M parameters, 512 features, 32 pixels\n"
        "run/encoder.safetensors: 19.7 MB\n"
        "  fastssl.load('run/encoder.safetensors')\n"
        "  timm.create_model('resnet10t', num_classes=0, checkpoint_path='run/encoder.safetensors')\n"
    )
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["encoder.safetensors", "last.ckpt"]


def test_where_files_go(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/last.ckpt").touch()
    Path("exported.safetensors").touch()

    def targets(*arguments):
        return [str(target.path) for target in command._targets(command._parser().parse_args(list(arguments)))]

    assert targets("run") == targets("run/last.ckpt") == ["run/encoder.safetensors"]
    assert targets("run", "--format", "onnx", "pytorch", "onnx") == ["run/encoder.onnx", "run/encoder.pth"]
    assert targets("exported.safetensors", "--format=onnx") == ["exported.onnx"]
    assert targets("timm:resnet18.a1_in1k", "--format=pytorch") == ["resnet18.a1_in1k.pth"]
    assert targets("run", "--out=a/b.pth") == targets("run", "--out=a/b.pth", "--format=pytorch") == ["a/b.pth"]
    assert targets("run", "--out=new") == targets("run", "--out=new/") == ["new/encoder.safetensors"]
    assert targets("run", "--out=v1.0/") == ["v1.0/encoder.safetensors"]


def test_files_are_not_written_over_unless_asked(runs, tmp_path, capsys):
    root, _ = runs
    for precious, out in (("a.safetensors", "a.safetensors"), ("b.json", "b.pth"), ("c.pth", "c.pth")):
        arguments = ["export", str(root / "vit"), "--out", str(tmp_path / out)]
        (tmp_path / precious).write_text("precious")
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and f"'{tmp_path / precious}' is there already; give another name" in printed
        assert (tmp_path / precious).read_text() == "precious"
        assert main([*arguments, "--overwrite"]) == 0
        assert (tmp_path / precious).read_bytes() != b"precious"
    (tmp_path / "d.onnx.data").write_text("precious")
    assert main(["export", str(root / "vit"), "--out", str(tmp_path / "d.onnx")]) == 2
    assert "d.onnx.data' is there already" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="the limit is POSIX's")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_cannot_be_written_leaves_the_old_one(suffix, runs, tmp_path, capsys):
    root, _ = runs
    path = tmp_path / f"encoder{suffix}"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as a disk that is full after 100 kB
    try:
        status = main(["export", str(root / "vit"), "--out", str(path), "--overwrite"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert capsys.readouterr().err == f"fastssl export: cannot write '{path}': File too large\n"
    assert path.read_text() == "old"
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["run", "--formt=onnx"], 2, "no option '--formt'; did you mean --format or"),
        (["run", "--format", "safetensor"], 2, "no format 'safetensor'; did you mean safetensors?"),
        (["--format", "onnx"], 2, "a source is needed: the folder of a run, a checkpoint, or the name of a timm model"),
        (
            ["run", "--out=a.onnx", "--format", "onnx", "pytorch"],
            2,
            "must be a folder for --format onnx pytorch, got",
        ),
        (
            ["run", "--out=model.pt"],
            2,
            "--out must be a folder, or a file ending in .safetensors, .pth, .onnx, got",
        ),
        (["run", "--out=text"], 2, "--out must be a folder, or a file ending in .safetensors, .pth, .onnx, got 'text'"),
        (["run", "--out=text/a.pth"], 2, "--out: 'text' is a file and no folder, got 'text/a.pth'"),
        (["run", "--size=0"], 2, "--size must be at least 1, got 0"),
        (["run", "--size=big"], 2, "big"),
        (["run", "--pretrained"], 1, "pretrained goes with the name of a timm model, got the file 'run'"),
        (["rum/last.ckpt"], 2, "there is no file or folder 'rum/last.ckpt'; in '.', did you mean run"),
        (["resnet81"], 2, "'resnet81' is no file, no folder and no timm model; did you mean resnet"),
        (["empty"], 1, "'empty/last.ckpt' is no checkpoint: there is no such file"),
        (["text"], 1, "'text' is no checkpoint that PyTorch can read"),
    ],
)
def test_a_wrong_word_gives_one_clear_line(arguments, status, message, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(runs[0] / "resnet")
    Path("empty").mkdir()
    Path("text").write_text("no checkpoint")
    before = sorted(tmp_path.iterdir()), sorted(Path("run").iterdir())
    assert main(["export", *arguments]) == status
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("fastssl export: ") and printed.count("\n") == 1
    assert (sorted(tmp_path.iterdir()), sorted(Path("run").iterdir())) == before


@pytest.fixture
def exported(runs, tmp_path):
    """A folder with vit.safetensors, and vit.pth with its description."""
    encoder = runs[1]["vit"].encoder()
    export.write_safetensors(encoder, tmp_path / "vit.safetensors")
    export.write_state_dict(encoder, tmp_path / "vit.pth")
    return tmp_path


def with_metadata(path, weights=None, **changes):
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in (file.metadata() | changes).items() if value is not None}
    save_file(load_file(path) if weights is None else weights, path, metadata)


_DAMAGES = {
    "is no safetensors file that can be read (": lambda path: path.write_bytes(path.read_bytes()[:100_000]),
    "it may be cut off": lambda path: path.write_bytes(b""),
    "); it may be cut off": lambda path: path.write_text("no weights at all"),
    "is no export of fastssl: its description lacks architecture, kwargs, stem, size, mean, std": lambda path: (
        save_file({"weight": torch.ones(2)}, path)
    ),
    "is no export of fastssl: its description lacks stem": lambda path: with_metadata(path, stem=None),
    "is no export of fastssl: its metadata cannot be read (": lambda path: with_metadata(path, kwargs="{depth"),
    "was written by fastssl 9.9 in the format 2; this is fastssl": lambda path: with_metadata(
        path, fastssl_format="2", fastssl_version="9.9"
    ),
    "in the format new; this is fastssl": lambda path: with_metadata(path, fastssl_format='"new"'),
    "backbone must be the name of a timm model, got 'vit_tny_patch16_224'; did you mean vit_tiny": lambda path: (
        with_metadata(path, architecture="vit_tny_patch16_224")
    ),
    'stem must be "timm" or "small", got \'large\'': lambda path: with_metadata(path, stem="large"),
    "does not fit what its description says: ": lambda path: with_metadata(path, kwargs='{"depth": 3}'),
    "does not fit what its description says: invalid literal": lambda path: with_metadata(path, size='"wide"'),
    "Missing key(s) in state_dict": lambda path: with_metadata(path, {"norm.weight": torch.ones(192)}),
}


@pytest.mark.parametrize("message", _DAMAGES)
def test_a_damaged_or_foreign_file_gives_one_line_with_its_name(message, exported, capsys):
    path = exported / "vit.safetensors"
    _DAMAGES[message](path)
    with pytest.raises(ValueError) as error:
        fastssl.load(path)
    assert str(error.value).startswith(repr(str(path))) and message in str(error.value)
    assert "\n" not in str(error.value)
    assert main(["export", str(path), "--out", str(exported / "other.pth")]) == 1
    assert capsys.readouterr().err == f"fastssl export: {error.value}\n"
    assert not (exported / "other.pth").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vit.json", None, "needs its description beside it, and there is no file"),
        ("vit.json", b"{", "vit.json' cannot be read: "),
        ("vit.json", b"[]", "is no export of fastssl: it must be a state dict, and the file beside it a description"),
        ("vit.json", b"{}", "is no export of fastssl: its description lacks architecture"),
        ("vit.pth", b"", "is no state dict that PyTorch can read"),
        ("vit.pth", b"PK\x03\x04 cut off", "is no state dict that PyTorch can read"),
    ],
)
def test_a_damaged_state_dict_gives_one_line_with_its_name(file, content, message, exported):
    (exported / file).unlink() if content is None else (exported / file).write_bytes(content)
    with pytest.raises(ValueError) as error:
        fastssl.load(exported / "vit.pth")
    assert message in str(error.value) and "vit." in str(error.value) and "\n" not in str(error.value)


def test_load_takes_paths_only_and_names_those_that_are_near(exported, monkeypatch):
    monkeypatch.chdir(exported)
    with pytest.raises(ValueError, match=r"^there is no file or folder 'vitt.safetensors'; in '.', did you mean vit"):
        fastssl.load("vitt.safetensors")
    with pytest.raises(ValueError, match="there is no file or folder 'resnet18'"):
        fastssl.load("resnet18")  # never a network of random numbers


def test_load_without_the_training_extra_says_so(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else found(name))
    with pytest.raises(ImportError, match=r'pip install "fastssl\[train\]" \(missing: timm\)'):
        fastssl.load("anything")


def test_an_argument_that_json_cannot_hold_is_named():
    encoder = load_encoder("test_resnet")
    encoder.architecture = encoder.architecture._replace(kwargs={"act_layer": torch.nn.GELU})
    with pytest.raises(ValueError, match="backbone_args must be numbers, words, lists and dicts to be exported"):
        export.describe(encoder)
