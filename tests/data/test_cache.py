"""The caches: the same pictures as without, used again, made anew whenever they have to be, nothing left behind."""

import errno
import os
import pickle
import signal
import time

import commands
import pytest
import torch
from drawn_pictures import draw
from PIL import Image

pytest.importorskip("lightning")
from spawned import fill, images_of, set_up

from fastssl.data import Files, UnreadableImage, cache
from fastssl.data import pictures as pictures_module


def same(a, b):
    a, b = images_of(a), images_of(b)
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.fixture
def decoded(monkeypatch):
    """Files that were decoded, in any order."""
    files, read = [], pictures_module.read_image

    def note(path, *arguments, **options):
        files.append(path.name)
        return read(path, *arguments, **options)

    monkeypatch.setattr(pictures_module, "read_image", note)
    return files


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("block", [1, 7000, 1 << 26])
def test_a_cache_holds_what_decoding_gives(root, tmp_path, kind, block, monkeypatch, decoded):
    monkeypatch.setattr(cache, "_BLOCK", block)
    monkeypatch.setattr(cache, "_CHUNK", 4)
    plain = set_up(root, tmp_path, cache="none", num_workers=0)
    data = set_up(root, tmp_path / "cache", cache=kind)
    decoded.clear()
    for loader, other in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        assert loader.num_workers == 0
        for batch, expected in zip(loader, other, strict=True):
            assert batch.index.tolist() == expected.index.tolist() and batch.label.tolist() == expected.label.tolist()
            assert all(map(torch.equal, batch.image, expected.image))
    assert len(decoded) == 16  # by the plain one


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_is_capped_unless_told_otherwise(root, tmp_path, kind):
    options = {"cache": kind, "size": 20}
    assert {min(image.shape[1:]) for image in images_of(set_up(root, tmp_path, **options, cap=None))} <= set(range(21))
    assert max(min(image.shape[1:]) for image in images_of(set_up(root, tmp_path, **options))) > 20


def test_the_next_run_decodes_nothing(root, tmp_path, decoded):
    first = set_up(root, tmp_path / "cache")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(made) == 2 and all(path.suffix == ".images" for path in made)
    decoded.clear()
    assert same(set_up(root, tmp_path / "cache"), first)
    assert not decoded
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == made


def test_whoever_writes_to_an_image_does_not_change_the_file(root, tmp_path):
    data = set_up(root, tmp_path / "cache")
    expected = [image.clone() for image in images_of(data)]
    images_of(data)[0].fill_(0)
    assert all(map(torch.equal, images_of(set_up(root, tmp_path / "cache")), expected))


def change(path):
    Image.fromarray(draw(33, 44, seed=99)).save(path)


def touch(path):
    os.utime(path, ns=(1, 1))


def add(path):
    change(path.with_name("new.jpg"))


@pytest.mark.parametrize("happens", [change, touch, add, os.remove], ids=lambda f: f.__name__)
def test_a_change_of_the_pictures_makes_it_anew(root, tmp_path, happens, decoded):
    set_up(root, tmp_path / "cache")
    happens(root / "train" / "cat" / "deeper" / "2.jpg")
    decoded.clear()
    data = set_up(root, tmp_path / "cache")
    assert set(decoded) and same(data, set_up(root, tmp_path, cache="none", num_workers=0))
    assert len(list((tmp_path / "cache").iterdir())) == 2  # in the place of the old one


def test_other_options_have_their_own_file(root, tmp_path, decoded):
    set_up(root, tmp_path / "cache")
    set_up(root, tmp_path / "cache", size=20)
    assert len(list((tmp_path / "cache").iterdir())) == 4
    decoded.clear()
    set_up(root, tmp_path / "cache")
    assert not decoded


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def cut_header(path):
    os.truncate(path, 70)


def empty(path):
    path.write_bytes(b"")


def other_content(path):
    path.write_bytes(b"something else entirely" * 1000)


def longer(path):
    with path.open("ab") as file:
        file.write(b"0")


@pytest.mark.parametrize("happens", [cut, cut_header, empty, other_content, longer], ids=lambda f: f.__name__)
def test_a_partial_or_foreign_file_is_made_anew(root, tmp_path, happens):
    expected = set_up(root, tmp_path, cache="none", num_workers=0)
    set_up(root, tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        happens(path)
    assert same(set_up(root, tmp_path / "cache"), expected)


def test_a_run_killed_while_it_writes_leaves_no_cache_and_harms_no_other(root, tmp_path):
    code = (
        "import os, signal\n"
        "from fastssl.data import Folder, cache\n"
        "def stop(files, skip):\n"
        "    for number, image in enumerate(decoded(files, skip)):\n"
        "        if number == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield image\n"
        "decoded, cache._decoded = cache._decoded, stop\n"
        f"Folder({str(root)!r}, cache='disk', cap=False, cache_dir={str(tmp_path / 'cache')!r}).setup()\n"
    )
    done = commands.run("-c", code)
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".partial"]
    data = set_up(root, tmp_path / "cache")
    assert same(data, set_up(root, tmp_path, cache="none", num_workers=0))
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".images"}


def test_a_full_disk_is_one_clear_error_and_nothing_is_left(root, tmp_path):
    code = (
        "from fastssl.data import Folder\n"
        "try:\n"
        f"    Folder({str(root)!r}, cache='disk', cache_dir={str(tmp_path / 'cache')!r}).setup()\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    done = commands.run("-c", code, file_size=20000)
    assert done.stdout.startswith(f"Folder: cannot write the cache {tmp_path / 'cache'}"), done.stderr
    assert os.strerror(errno.EFBIG) in done.stdout and "choose another cache_dir" in done.stdout
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("kind", "room"), [("disk", "disk_usage"), ("ram", "_free_memory")])
def test_too_little_room_is_seen_before_all_is_decoded(root, tmp_path, kind, room, monkeypatch):
    if kind == "ram":
        monkeypatch.setattr(cache, "_free_memory", lambda: 1000)
    else:
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: cache.shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(ValueError, match=rf'Folder: cache="{kind}" needs about .* choose another cache'):
        set_up(root, tmp_path / "cache", cache=kind)
    assert kind == "ram" or not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_there_is_named(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Folder: cannot write the cache .*Not a directory"):
        set_up(root, tmp_path / "file" / "cache")


def test_of_several_processes_one_writes(root, tmp_path):
    barrier, results = commands.SERVER.Barrier(3), commands.SERVER.Queue()
    processes = [
        commands.SERVER.Process(target=fill, args=(root, tmp_path / "cache", barrier, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    made, sums = zip(*(results.get(timeout=120) for _ in processes), strict=True)
    for process in processes:
        process.join()
    assert sum(made) == 2  # train and test, once each
    assert len(set(sums)) == 1
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".images"}


def test_a_process_waits_for_the_one_that_writes_and_takes_over_when_it_dies(root, tmp_path):
    folder = tmp_path / "cache"
    code = (
        "import time\n"
        "from fastssl.data import Folder, cache\n"
        "cache._decoded = lambda *arguments: time.sleep(100)\n"
        f"Folder({str(root)!r}, cache='disk', cap=False, cache_dir={str(folder)!r}).setup()\n"
    )
    writer = commands.Command("-c", code)
    try:
        deadline = time.monotonic() + 60
        while not (folder.is_dir() and list(folder.iterdir())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        waiter = commands.SERVER.Process(target=set_up, args=(root, folder))
        waiter.start()
        waiter.join(timeout=8)
        assert waiter.exitcode is None
        writer.send_signal(signal.SIGKILL)
        waiter.join(timeout=60)
        assert waiter.exitcode == 0
    finally:
        writer.kill()
        writer.wait()
    assert {path.suffix for path in folder.iterdir()} == {".images"}


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_picture_that_cannot_be_read_is_noted_or_raised(root, tmp_path, kind):
    (root / "train" / "cat" / "deeper" / "1.jpg").write_text("no picture")
    with pytest.raises(UnreadableImage, match=r"Folder: cannot read .*cat/deeper/1.jpg: it is no picture"):
        set_up(root, tmp_path / "cache", cache=kind, on_error="raise")
    data = set_up(root, tmp_path / "cache", cache=kind)
    with pytest.warns(UserWarning, match=r"cannot read .*cat/deeper/1.jpg: it could not be when the cache was made"):
        assert data.train[1].index.tolist() == [2]
    assert [path.name for path in data.train.unreadable] == ["1.jpg"]
    if kind == "disk":  # the cache is there, and still says so
        with pytest.raises(UnreadableImage, match=r"1.jpg: it could not be"):
            images_of(set_up(root, tmp_path / "cache", on_error="raise"))


def test_another_process_maps_the_file_and_is_not_sent_the_pixels(root, tmp_path):
    source = set_up(root, tmp_path / "cache").train.source
    sent = pickle.dumps(source)
    assert len(sent) < 2500 < sum(block.numel() for block in source.blocks)
    copied = pickle.loads(sent)
    assert all(torch.equal(copied.read(n), source.read(n)) for n in range(len(source)))
    next((tmp_path / "cache").glob("*train*")).unlink()
    with pytest.raises(FileNotFoundError, match="was changed while it was in use"):
        pickle.loads(sent)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_part_of_a_cache_travels_without_the_rest(root, tmp_path, kind):
    train = set_up(root, tmp_path / "cache", cache=kind).train
    batch = train.__getitems__([0, 1])
    assert len(pickle.dumps(batch.image)) < sum(image.numel() for image in batch.image) + 1000


def test_nothing_can_be_cached_too(tmp_path):
    for made in (cache.cache_in_memory(Files([])), cache.cache_on_disk(Files([]), tmp_path / "none.images")):
        assert len(made) == 0
    (tmp_path / "broken.jpg").touch()
    files = Files([tmp_path / "broken.jpg"])
    for made in (cache.cache_in_memory(files, skip=True), cache.cache_on_disk(files, tmp_path / "x", skip=True)):
        with pytest.raises(UnreadableImage, match=r"broken\.jpg"):
            made.read(0)
