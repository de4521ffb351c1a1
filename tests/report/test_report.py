"""The folder that a run leaves: pictures, tables and a page, also of data that is odd."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from drawn_pictures import draw, make_folder
from PIL import Image

pytest.importorskip("lightning")
from fastssl.data import Folder, ImageData, ImageList, TensorImages
from fastssl.data.images import Batch
from fastssl.evaluate import Features
from fastssl.evaluate.maps import tsne
from fastssl.methods import SimCLR
from fastssl.report import eval_report, fit_report
from fastssl.report.neighbors import nearest
from fastssl.report.samples import images_of
from fastssl.report.tables import Table, accuracy_table, lines_table

_ACCURACY = {
    "pixels": {"knn": 0.25, "linear": 0.5},
    "untrained": {"knn": 0.5, "linear": 0.625},
    "trained": {"knn": 0.75, "linear": 0.6},
}


class Given(ImageData):
    """Images as they are given."""

    def __init__(self, train, test, class_names):
        super().__init__(batch_size=4)
        self.train, self.test, self.class_names = train, test, class_names
        self.broken = []

    @property
    def unreadable(self):
        return self.broken


class Ragged(torch.utils.data.Dataset):
    """Photographs of different sizes."""

    def __init__(self, sizes):
        self.images = [torch.from_numpy(draw(*size, seed=n).copy()).permute(2, 0, 1) for n, size in enumerate(sizes)]

    def __len__(self):
        return len(self.images)

    def __getitems__(self, places):
        image = ImageList(self.images[place] for place in places)
        return Batch(image, torch.full((len(image),), -1), torch.tensor(places))


class Stream(torch.utils.data.IterableDataset):
    """Batches one after the other, of which none can be asked for, some images twice."""

    def __init__(self, images, order):
        self.images, self.order = images, order

    def __iter__(self):
        for place in self.order:
            yield self.images.__getitems__([place])


def stacked(count, classes, channels=3, size=16):
    images = torch.randint(0, 256, (count, channels, size, size), generator=torch.Generator().manual_seed(count))
    labels = torch.arange(count) % classes if classes else torch.full((count,), -1)
    return TensorImages(images.byte(), labels)


def features_of(data, dim=8):
    """Random features of a data set's images."""
    generator = torch.Generator().manual_seed(0)

    def half(images):
        label = images.labels if hasattr(images, "labels") else torch.full((len(images),), -1)
        return Features(torch.randn(len(images), dim, generator=generator), label)

    return {"bank": half(data.train), "test": half(data.test)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SimCLR(backbone="test_resnet", size=16)


class Links(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.words = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "data", "srcset", "action")]

    def handle_data(self, data):
        self.words.append(data)


def check(page):
    """The page's text, once what it refers to is there and it needs nothing from elsewhere."""
    text = page.read_text(encoding="utf-8")
    links = Links(text)
    for link in links.links:
        assert not re.match(r"[a-z]+:|/", link), link
        path = page.parent / unquote(link)
        assert path.is_file()
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.format == "PNG" and min(picture.size) > 100
                assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # there is something on it
                picture.load()
    assert not links.tags & {"script", "link", "iframe"} and "@import" not in text and "url(" not in text
    return " ".join(" ".join(links.words).split())


def results(**more):
    return {
        "method": "simclr", "backbone": "test_resnet", "seed": 3, "epochs": 2, "training_seconds": 3725.0,
        "images_per_second": 1234.5, "peak_memory_bytes": 3 * 2**29, "accuracy": _ACCURACY, **more,
    }  # fmt: skip


def test_the_report_of_a_run(tmp_path, model):
    data = Given(stacked(40, 4), stacked(24, 4), ["ant", "bee", "cat", "dog"])
    (tmp_path / "metrics.csv").write_text("step,loss,knn\n0,5,\n1,4,0.5\n2,3,\n3,2,0.75\n")
    (tmp_path / "results.json").write_text("{}")
    page = fit_report(tmp_path, results=results(), model=model, data=data, features=features_of(data))
    text = check(page)
    assert page == tmp_path / "index.html"
    assert "Not drawn" not in text
    names = {path.name for path in tmp_path.iterdir()}
    assert {"curves.png", "map_tsne.png", "neighbors.png", "views.png", "table.md", "results.json"} <= names
    for words in (
        "SimCLR, test_resnet", "Given", "40 training, 24 test", "1 h 02 min", "1,234 images/s", "1.50 GiB", "seed 3",
        "k-NN %", "raw pixels", "75.0", "the same network before training", "torch " + torch.__version__,
    ):  # fmt: skip
        assert words in text, words
    assert "| trained encoder | 75.0 | 60.0 |" in (tmp_path / "table.md").read_text()


def test_a_report_can_be_written_again(tmp_path, model):
    data = Given(stacked(12, 2), stacked(8, 2), ["a", "b"])
    written = []
    for _ in range(2):
        fit_report(tmp_path, results=results(), model=model, data=data, features=features_of(data))
        written.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert written[0] == written[1] and len(written[0]) == 5


def test_images_without_labels(tmp_path, model):
    data = Given(stacked(12, 0), stacked(8, 0), [])
    text = check(fit_report(tmp_path, results=results(accuracy={}), model=model, data=data, features=features_of(data)))
    assert "none: the images have no labels" in text
    assert "Not drawn: there is nothing to measure, since the images have no labels." in text
    assert (tmp_path / "map_tsne.png").exists() and (tmp_path / "neighbors.png").exists()


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("two images", ["map_tsne.png"]),
        ("one class", []),
        ("grey", []),
        ("thirty classes", []),
        ("ragged", []),
        ("nan", ["map_tsne.png", "neighbors.png"]),
        ("no features", ["map_tsne.png", "neighbors.png"]),
    ],
)
def test_odd_data_costs_no_more_than_the_picture_that_it_cannot_have(kind, missing, tmp_path, model):
    train, test, names = stacked(12, 2), stacked(8, 2), ["a", "b"]
    if kind == "two images":
        train, test = stacked(2, 2), stacked(2, 2)
    elif kind == "one class":
        train, test, names = stacked(12, 1), stacked(8, 1), ["only"]
    elif kind == "grey":
        train, test = stacked(12, 2, channels=1), stacked(8, 2, channels=1)
    elif kind == "thirty classes":
        train, test, names = stacked(60, 30), stacked(60, 30), [f"class {n}" for n in range(30)]
    elif kind == "ragged":
        train, test, names = Ragged([(900, 1300), (40, 30), (5, 700)] * 3), Ragged([(300, 200), (1200, 20)] * 4), []
    data = Given(train, test, names)
    features = features_of(data)
    if kind == "nan":
        features = {half: part._replace(x=part.x * float("nan")) for half, part in features.items()}
    if kind == "no features":
        features = None
    (tmp_path / "metrics.csv").write_text("step,loss\n0,5\n1,nan\n2,4\n")
    text = check(fit_report(tmp_path, results=results(), model=model, data=data, features=features))
    drawn = {"curves.png", "map_tsne.png", "neighbors.png", "views.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == drawn - set(missing)
    assert text.count("Not drawn") == len(missing) and "because of an error" not in text


def test_a_single_row_that_is_not_finite_is_nobodys_neighbour(tmp_path, model):
    data = Given(stacked(12, 2), stacked(8, 2), ["a", "b"])
    features = features_of(data)
    features["bank"].x[3] = features["test"].x[0] = float("inf")
    text = check(fit_report(tmp_path, results=results(), model=model, data=data, features=features))
    assert (tmp_path / "neighbors.png").exists() and "Not drawn: tsne: x must be finite" in text


def test_a_picture_that_fails_does_not_cost_the_others(tmp_path, model, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("of <all> things")

    monkeypatch.setattr("fastssl.report.reports.gallery", fail)
    data = Given(stacked(12, 2), stacked(8, 2), ["a", "b"])
    text = check(fit_report(tmp_path, results=results(), model=model, data=data, features=features_of(data)))
    assert "Not drawn, because of an error: RuntimeError: of <all> things" in text
    assert (tmp_path / "views.png").exists() and "Nearest neighbours failed" in caplog.text


def test_names_are_text_and_nothing_else(tmp_path, model):
    evil = '<script>alert("x")</script>&amp;|$\\frac'
    data = Given(stacked(12, 2), stacked(8, 2), [evil, "line\nbreak \udcff"])
    data.root = f"/images/{evil}"
    data.broken = [f"/images/{evil}.jpg"] * 23
    page = fit_report(tmp_path, results=results(backbone=evil), model=model, data=data, features=features_of(data))
    text = check(page)
    assert text.count(evil) >= 3 and "Not drawn: metrics" in text and text.count("Not drawn") == 1
    assert "<script" not in page.read_text(encoding="utf-8")
    assert "23 pictures could not be read" in text and "and 3 more; results.json lists them" in text


def test_the_report_of_an_evaluation(tmp_path):
    data = Given(stacked(40, 4), stacked(24, 4), ["ant", "bee", "cat", "dog"])
    features = features_of(data)
    lines = {
        name: {"h": {**values, "nmi": 0.25, "knn by k": {"1": 0.5}}, "z": values} for name, values in _ACCURACY.items()
    }
    maps = {"tsne": tsne(features["test"].x), "umap_z": np.random.default_rng(0).normal(size=(10, 2))}
    page = eval_report(
        tmp_path / "new" / "folder",
        results={"encoder": "runs/a/1", "architecture": "resnet18", "lines": lines, "seconds": 2.5,
            "details": {"trained": {"h": {"linear": {"lr": "<0.1>"}}}}},
        data=data, features=features, maps=maps,
    )  # fmt: skip
    text = check(page)
    assert "Not drawn" not in text and "runs/a/1" in text and "time 2.5 s" in text and '"lr": "<0.1>"' in text
    assert "t-SNE of the representation h" in text and "UMAP of the projection z" in text
    assert "trained encoder, h" in text and "trained encoder, z" in text and "k-means NMI" in text
    assert {"map_tsne.png", "map_umap_z.png", "neighbors.png", "table.md"} <= {p.name for p in page.parent.iterdir()}


def test_tables_escape_what_their_format_means():
    table = Table(["line", "k|NN"], [["a|b\nc", "50.0"], ["<i>", "7.5"]], [("<b>", "&")])
    assert table.markdown() == "| line | k\\|NN |\n| --- | ---: |\n| a\\|b c | 50.0 |\n| <i> | 7.5 |\n\n- <b>: &\n"
    html = table.html()
    assert "&lt;i&gt;" in html and "<dt>&lt;b&gt;</dt><dd>&amp;</dd>" in html and "<i>" not in html
    assert "<b>50.0</b>" in html and "<b>7.5</b>" not in html  # numbers, not words, are compared


def test_tables_show_what_was_measured_and_leave_the_rest_empty():
    table = lines_table(
        {"trained": {"h": {"knn": 0.5, "own": 12}, "z": {"knn": None}}, "pixels": {"h": {"linear": 1.0}}}
    )
    assert table.heads == ["representation", "k-NN %", "linear probe %", "own"]
    assert table.rows == [
        ["trained encoder, h", "50.0", "", "12"],
        ["trained encoder, z", "", "", ""],
        ["raw pixels, h", "", "100.0", ""],
    ]
    assert dict(accuracy_table({**_ACCURACY, "untrained_calibrated": {"knn": 0.5}}).notes)["untrained encoder"] == (
        "the same network before training, BatchNorm statistics still 0 and 1"
    )
    table = lines_table({"trained": {"h": {"semi_1_linear": 0.5, "semi_1": 0.25, "nmi": 0.123456, "other": 0.5}}})
    assert table.heads[1:] == ["k-means NMI", "1 % of labels, linear probe %", "1 % of labels, fine-tuned %", "other"]
    assert table.rows == [["trained encoder", "0.123", "50.0", "25.0", "0.5"]]
    assert accuracy_table(_ACCURACY).rows[0] == ["raw pixels", "25.0", "50.0"]


def test_nearest_are_those_with_the_largest_cosine(monkeypatch):
    monkeypatch.setattr("fastssl.report.neighbors._BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(3, 5, generator=generator), torch.randn(30, 5, generator=generator)
    place, cosine = nearest(queries, bank, 4)
    full = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=2)
    expected = full.topk(4)
    assert torch.equal(place, expected.indices)
    torch.testing.assert_close(cosine, expected.values)
    assert nearest(queries, bank[:2], 4)[0].shape == (3, 2)


def test_rows_of_features_are_found_among_pictures_of_which_some_cannot_be_read(tmp_path):
    root = make_folder(tmp_path)
    (root / "train" / "cat" / "deeper" / "1.jpg").write_text("broken")
    data = Folder(str(root), num_workers=0, batch_size=3, on_error="skip")
    data.setup()
    with pytest.warns(UserWarning, match="cannot read"):
        rows = dict.fromkeys(index for batch in data.bank_dataloader() for index in batch.index.tolist())
    assert list(rows) == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    found = images_of(data, "bank", [0, 1, 8], total=9)
    for row, place in ((0, 0), (1, 2), (8, 9)):
        assert torch.equal(found[row], data.train.source.read(place))
    with pytest.raises(ValueError, match="features of 7 images, and 9 images that can be read"):
        images_of(data, "bank", [0], total=7)


def test_rows_of_a_stream_count_each_image_once():
    images = stacked(6, 2)
    data = Given(images, images, ["a", "b"])
    data.train = Stream(images, [4, 4, 2, 4, 0])
    data.bank_dataloader = lambda: iter(data.train)
    found = images_of(data, "bank", [1, 2], total=3)
    assert torch.equal(found[1], images.images[2]) and torch.equal(found[2], images.images[0])
    with pytest.raises(ValueError, match="there are 3 images, of row 5 there is none"):
        images_of(data, "bank", [1, 5], total=6)
