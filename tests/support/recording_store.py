"""A store that remembers what was asked of it."""

from counterpoise.storage.local import LocalStore


class RecordingStore(LocalStore):
    """A store in a folder, with its requests: ``requests`` has (method, key), ``ranges`` (key, start, stop)."""

    def __init__(self, root):
        super().__init__(root)
        self.requests, self.ranges = [], []

    def of(self, *methods):
        """The keys that these methods were called with, in order."""
        return [key for method, key in self.requests if method in methods]

    def read(self, key):
        self.requests.append(("read", key))
        with super().open(key) as file:  # not a request of its own
            return file.read()

    def open(self, key):
        self.requests.append(("open", key))
        return super().open(key)

    def read_range(self, key, start, stop):
        self.requests.append(("read_range", key))
        self.ranges.append((key, start, stop))
        with super().open(key) as file:
            file.seek(start)
            return file.read(stop - start)

    def list(self, prefix):
        self.requests.append(("list", prefix))
        return super().list(prefix)

    def exists(self, key):
        self.requests.append(("exists", key))
        return super().exists(key)

    def create(self, key, data):
        self.requests.append(("create", key))
        return super().create(key, data)

    def replace(self, key, data):
        self.requests.append(("replace", key))
        return super().replace(key, data)

    def delete(self, key):
        self.requests.append(("delete", key))
        return super().delete(key)
