"""One's own pictures: what is listed, batches of different sizes, and pictures that cannot be read."""

import os
import pickle
import warnings

import commands
import pytest
import torch
from drawn_pictures import draw
from PIL import Image
from torch.utils.data import DataLoader

pytest.importorskip("lightning")
from spawned import as_it_is

from fastssl.data import Batch, Files, Folder, ImageList, Pictures, UnreadableImage, read_image
from fastssl.data.folder import find_pictures
from fastssl.data.images import move_images
from fastssl.data.pictures import held_out


def set_up(root, **options):
    data = Folder(str(root), **({"batch_size": 2, "num_workers": 0} | options))
    data.setup("fit")
    return data


def images_of(loader):
    return [image for batch in loader for image in batch.image]


def files_of(data):
    return [data.train.source.path(number) for number in range(len(data.train))]


@pytest.mark.parametrize("half", ["test", "val"])
def test_a_folder_per_class_gives_whole_pictures_with_labels(root, half):
    (root / "test").rename(root / half)
    data = set_up(root)
    assert data.class_names == ["cat", "dog"]
    assert (len(data.train), len(data.test)) == (10, 6)
    batches = list(data.bank_dataloader())
    assert torch.cat([batch.label for batch in batches]).tolist() == [0] * 5 + [1] * 5
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(10))
    for path, image in zip(files_of(data), images_of(data.bank_dataloader()), strict=True):
        assert image.dtype == torch.uint8 and torch.equal(image, read_image(path))
    assert len({image.shape for image in images_of(data.bank_dataloader())}) == 5
    assert sum(len(batch.image) for batch in data.train_dataloader()) == 10


def test_what_is_listed(tmp_path):
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "notes.txt", "._b.JPG", ".hidden/d.jpg", "x.jpg/e.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [os.path.relpath(path, tmp_path) for path in find_pictures(tmp_path)]
    assert found == ["a.png", "b.JPG", "deep/er/c.webp", "x.jpg/e.jpeg"]


def test_a_class_may_be_a_link_to_another_place(root, tmp_path):
    (root / "train" / "dog").rename(tmp_path / "elsewhere")
    (root / "train" / "dog").symlink_to(tmp_path / "elsewhere")
    assert len(set_up(root).train) == 10


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_nothing(root, workers):
    batches, expected = (list(set_up(root, num_workers=n, batch_size=3).bank_dataloader()) for n in (workers, 0))
    for batch, other in zip(batches, expected, strict=True):
        assert type(batch.image) is ImageList and torch.equal(batch.index, other.index)
        assert all(torch.equal(a, b) for a, b in zip(batch.image, other.image, strict=True))


def test_a_batch_from_a_worker_is_one_block_of_shared_memory(root):
    batch = next(iter(set_up(root, num_workers=1, batch_size=5).bank_dataloader()))
    storages = {image.untyped_storage().data_ptr() for image in batch.image}
    assert len(storages) == 1 and batch.image[0].is_shared()
    assert batch.image.pack().data_ptr() == batch.image[0].data_ptr()  # moved as it is
    assert batch.image[0].untyped_storage().nbytes() == sum(image.numel() for image in batch.image)


# What a folder looks like


def test_unlabelled_pictures_are_found_at_any_depth(root):
    flat = set_up(root, labels="none")
    assert flat.class_names == [] and flat.num_classes == 0
    assert (len(flat.train), len(flat.test)) == (10, 6)
    assert {label for batch in flat.bank_dataloader() for label in batch.label.tolist()} == {-1}


def names(pictures, root):
    return {pictures.source.path(number).relative_to(root).as_posix() for number in range(len(pictures))}


def many(folder, classes, each):
    """Empty files: they are listed, not read."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            (folder / name / f"{number}.jpg").touch()
    return folder


def test_classes_without_halves_keep_a_share_of_each_to_test_on(tmp_path):
    data = set_up(many(tmp_path / "all", ("cat", "dog", "train"), 200))
    assert data.class_names == ["cat", "dog", "train"]
    train, test = names(data.train, tmp_path / "all"), names(data.test, tmp_path / "all")
    assert len(train) + len(test) == 600 and not train & test
    for label in range(3):
        assert 8 <= (data.test.labels == label).sum() <= 34  # 20 in the mean, standard deviation 4.2
    for pictures in (data.train, data.test):
        for number in range(len(pictures)):
            assert pictures.source.path(number).parent.name == data.class_names[pictures.labels[number]]
    half = set_up(tmp_path / "all", test_share=0.5)
    assert 250 <= len(half.test) <= 350 and test < names(half.test, tmp_path / "all")


def test_pictures_that_are_added_move_none_between_training_and_test(tmp_path):
    before = set_up(many(tmp_path / "all", ("cat", "dog"), 50))
    kept = [names(half, tmp_path / "all") for half in (before.train, before.test)]
    many(tmp_path / "all", ("cat", "dog", "eel"), 80)
    (tmp_path / "all").rename(tmp_path / "elsewhere")
    after = set_up(tmp_path / "elsewhere")
    now = [names(half, tmp_path / "elsewhere") for half in (after.train, after.test)]
    assert kept[0] < now[0] and kept[1] < now[1]


def test_the_choice_is_that_of_every_machine():
    keys = [f"cat/{number}.jpg" for number in range(40)]
    assert [number for number, held in enumerate(held_out(keys, 0.1)) if held] == [3, 13, 30, 36, 38]
    assert sum(held_out(["a", "b", "c"], 1e-9)) == 1 and held_out([], 0.1) == []


@pytest.mark.parametrize("inside", ["", "train", "holiday", "train/holiday"])
def test_pictures_in_no_class_folder_have_no_label(tmp_path, inside):
    data = set_up(many(tmp_path, (inside,), 30))
    assert data.class_names == [] and set(data.train.labels.tolist()) == {-1} == set(data.test.labels.tolist())
    assert len(data.train) + len(data.test) == 30 and len(data.test) >= 1


def test_pictures_beside_class_folders_have_no_label(tmp_path):
    data = set_up(many(tmp_path, ("cat", "dog", ""), 30))
    assert data.class_names == ["cat", "dog"] and data.train.labels.unique().tolist() == [-1, 0, 1]
    for number in range(len(data.train)):
        assert (data.train.labels[number] == -1) == (data.train.source.path(number).parent == tmp_path)


def test_a_folder_named_train_alone_is_no_class(tmp_path):
    data = set_up(many(tmp_path / "train", ("cat", "dog"), 20).parent)
    assert data.class_names == ["cat", "dog"] and len(data.train) + len(data.test) == 40


def test_the_number_of_classes_is_known_when_it_is_asked_for(root):
    assert Folder(str(root)).num_classes == 2


# The list of images


def sample_images():
    return ImageList(
        torch.randint(256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
        for height, width in ((5, 7), (1, 1), (30, 4))
    )


@pytest.mark.parametrize(
    "copy", [lambda x: pickle.loads(pickle.dumps(x)), lambda x: ImageList.unpack(x.pack(), x.sizes)]
)
def test_images_travel_unchanged(copy):
    images = sample_images()
    copied = copy(images)
    assert type(copied) is ImageList
    assert all(torch.equal(a, b) for a, b in zip(images, copied, strict=True))
    assert all(image.permute(1, 2, 0).is_contiguous() for image in copied)
    assert copied.pack().data_ptr() == copied[0].data_ptr()


def test_channels_first_images_and_parts_of_larger_ones_travel_unchanged():
    whole = torch.randint(256, (3, 20, 20), dtype=torch.uint8)
    images = ImageList([whole, whole[:, 3:9, 5:6], whole[:1]])
    copied = pickle.loads(pickle.dumps(images))
    assert all(torch.equal(a, b) for a, b in zip(images, copied, strict=True))


def test_a_part_of_a_block_travels_without_the_rest():
    images = sample_images()
    images = ImageList.unpack(images.pack(), images.sizes)
    for part in (images[:1], images[1:2]):
        assert ImageList(part).pack().untyped_storage().nbytes() == part[0].numel()


def test_an_image_that_was_exchanged_is_what_travels():
    images = sample_images()
    images = ImageList.unpack(images.pack(), images.sizes)
    images[1] = torch.full_like(images[1], 7)
    assert pickle.loads(pickle.dumps(images))[1].unique().tolist() == [7]


def test_lightning_moves_a_batch_in_one_piece():
    from lightning.pytorch.utilities import move_data_to_device

    batch = move_data_to_device(Batch(sample_images(), torch.zeros(3), torch.arange(3)), torch.device("meta"))
    assert type(batch) is Batch and type(batch.image) is ImageList
    assert batch.image.sizes == sample_images().sizes
    assert {image.device.type for image in (*batch.image, batch.label)} == {"meta"}
    storages = {id(image._base) for image in batch.image}
    assert len(storages) == 1


def test_a_plain_list_and_a_stack_can_be_moved():
    images = list(sample_images())
    assert [image.device.type for image in move_images(images, "meta")] == ["meta"] * 3
    assert move_images(torch.zeros(2, 3, 4, 4).byte(), "meta").shape == (2, 3, 4, 4)
    assert move_images(images, "cpu")[0] is images[0]


# Pictures that cannot be read


def spoil(root):
    """A truncated file, an empty one, and text; returns their names."""
    folder = root / "train" / "cat" / "deeper"
    whole = (folder / "1.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "3.jpg").write_bytes(b"")
    (root / "train" / "dog" / "deeper" / "4.jpg").write_text("no picture")
    return ["cat/deeper/1.jpg", "cat/deeper/3.jpg", "dog/deeper/4.jpg"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_read_is_named(root, workers):
    spoil(root)
    with pytest.raises(UnreadableImage, match=r"Folder: cannot read .*cat/deeper/1\.jpg: .*[Tt]runcated"):
        list(set_up(root, num_workers=workers, on_error="raise").bank_dataloader())


def test_a_picture_that_cannot_be_read_is_named_once_and_replaced_by_the_next(root):
    names = spoil(root)
    (root / "test" / "cat" / "deeper" / "2.jpg").write_bytes(b"")
    data = set_up(root, batch_size=5)
    assert data.unreadable == []
    with pytest.warns(UserWarning) as warned:
        batches = list(data.bank_dataloader())
    assert [len(batch.image) for batch in batches] == [5, 5]
    assert torch.cat([batch.index for batch in batches]).tolist() == [0, 2, 2, 4, 4, 5, 6, 7, 8, 0]
    assert torch.cat([batch.label for batch in batches]).tolist() == [0] * 5 + [1] * 4 + [0]
    for batch in batches:
        for image, number in zip(batch.image, batch.index.tolist(), strict=True):
            assert torch.equal(image, read_image(files_of(data)[number]))
    messages = [str(warning.message) for warning in warned]
    assert len(messages) == 3
    for message, name in zip(messages, names, strict=True):
        assert f"{name}: " in message and message.startswith("Folder: cannot read ")
    assert [str(path.relative_to(root / "train")) for path in data.unreadable] == names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(data.bank_dataloader())
    with pytest.warns(UserWarning, match="test/cat/deeper/2.jpg: the file is empty"):
        list(data.test_dataloader())
    assert data.unreadable == [*data.train.unreadable, root / "test" / "cat" / "deeper" / "2.jpg"]


def test_processes_tell_each_other_what_cannot_be_read(root):
    names = spoil(root)
    code = (
        "from fastssl.data import Folder\n"
        f"data = Folder({str(root)!r}, batch_size=2, num_workers=2)\n"
        "data.setup()\n"
        "for _ in range(3): assert sum(len(batch.image) for batch in data.train_dataloader()) == 10\n"
        "print(len(data.unreadable))\n"
    )
    done = commands.run("-c", code)
    assert done.stdout == "3\n", done.stderr
    # Two processes may come upon the same picture at the same moment, once.
    for name in names:
        assert 1 <= done.stderr.count(f"{name}: ") <= 2


def test_where_nothing_can_be_read_it_ends(tmp_path):
    files = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    pictures = Pictures(Files(files), [0, 0], on_error="skip")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of the 2 pictures can be read"):
        pictures[1]


def test_spawned_processes_read_the_same(root):
    pictures = set_up(root).train
    loader = DataLoader(pictures, 5, num_workers=1, multiprocessing_context=commands.SERVER, collate_fn=as_it_is)
    for a, b in zip(images_of(loader), images_of(set_up(root).bank_dataloader()), strict=True):
        assert torch.equal(a, b)


def test_what_is_wrong_is_named(tmp_path, root):
    with pytest.raises(FileNotFoundError) as raised:
        set_up(tmp_path / "picture" / "deeper")
    assert str(raised.value) == (
        f"Folder: root must be a folder of pictures, there is no folder {tmp_path}/picture/deeper; "
        f"in {tmp_path}, did you mean pictures?"
    )
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*cat/x; in .*cat, choose from deeper$"):
        set_up(root / "test" / "cat" / "x")
    with pytest.raises(FileNotFoundError, match=r"no folder .*deeper/x; in .*deeper there are none$"):
        set_up(root / "test" / "cat" / "deeper" / "x")
    for options, message in (
        ({"size": 0}, "Folder: size must be at least 1, got 0"),
        ({"on_error": "ignore"}, 'Folder: on_error must be "raise" or "skip", got \'ignore\''),
        ({"cache": "gpu"}, 'Folder: cache must be "none" or "ram" or "disk", got \'gpu\''),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"labels": "some"}, 'Folder: labels must be "auto" or "none", got \'some\''),
        ({"test_share": 1.0}, "Folder: test_share must be between 0 and 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Folder(str(root), **options)
    with pytest.raises(ValueError, match="Pictures: labels must be 1 for as many pictures, got 2"):
        Pictures(Files(["a.jpg"]), [0, 1])
    with pytest.raises(ValueError, match='Pictures: on_error must be "raise" or "skip", got None'):
        Pictures(Files(["a.jpg"]), [0], on_error=None)
    (root / "test" / "cat").rename(root / "test" / "fish")
    with pytest.raises(ValueError, match=r"has classes that .* lacks: \['fish'\]"):
        set_up(root)
    assert len(set_up(root, labels="none").test) == 6
    for path in (root / "test").rglob("*.*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"Folder: no picture \(.jpg, .*\) in .*pictures/test$"):
        set_up(root)
    (root / "train").rename(root / "training")
    with pytest.raises(FileNotFoundError, match="pictures has a folder test, but none with the name train"):
        set_up(root)
    with pytest.raises(FileNotFoundError, match=r"no picture \(.*\) in .*empty$"):
        set_up(many(tmp_path / "empty", ("",), 0))
    with pytest.raises(FileNotFoundError, match=r"no picture \(.*\) in .*one to train on beside the one to test on$"):
        set_up(many(tmp_path / "one", ("",), 1))


def test_large_pictures_are_decoded_smaller(root):
    Image.fromarray(draw(400, 600, seed=1)).save(root / "train" / "cat" / "deeper" / "1.jpg")
    shapes = {size: tuple(set_up(root, size=size).train[1].image[0].shape) for size in (None, 150, 60)}
    assert shapes == {None: (3, 400, 600), 150: (3, 200, 300), 60: (3, 100, 150)}
    assert set_up(root, size=60, cap=True).train[1].image[0].shape == (3, 60, 90)
