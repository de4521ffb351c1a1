"""What tests run in spawned processes, which import it by its name: they do not find the test modules themselves."""

from fastssl.data import Folder, cache


def set_up(root, folder, **options):
    """A folder of pictures with a cache on the disk."""
    data = Folder(str(root), **({"cache": "disk", "cache_dir": str(folder), "batch_size": 3, "cap": False} | options))
    data.setup("fit")
    return data


def images_of(data):
    return [image for loader in data.val_dataloader() for batch in loader for image in batch.image]


def fill(root, folder, barrier, results):
    """Set up a cache at the same time as others; put how often it was made, and the sum of its images."""
    barrier.wait()
    count = []
    decoded = cache._decoded
    cache._decoded = lambda *arguments: (count.append(1), decoded(*arguments))[1]
    data = Folder(str(root), cache="disk", cap=False, cache_dir=str(folder))
    data.setup()
    results.put((len(count), sum(int(image.sum()) for image in images_of(data))))


def as_it_is(batch):
    return batch
