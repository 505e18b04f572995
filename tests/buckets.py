"""A server that speaks S3, within the process of the tests."""

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ssamba.data.prepare import elsewhere

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'
EXPIRED = ("403 Forbidden", ERROR.format("ExpiredToken", "The provided token has expired."))
BUSY = ("503 Slow Down", ERROR.format("SlowDown", "Please reduce your request rate."))
LOST = ("500 Internal Server Error", ERROR.format("InternalError", "We encountered an internal error."))


class Bucket:
    """Moto's server, with a bucket `shards`; of its requests every `fails`-th fails, or all where the token expired."""

    def __init__(self) -> None:
        import moto.server  # no part of what ssamba needs
        import werkzeug.serving

        self.app = moto.server.DomainDispatcherApplication(moto.server.create_backend_app)
        self.server = werkzeug.serving.make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.fails, self.fault, self.expired, self.count = 0, BUSY, False, 0
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.count += 1
            self.asked[f"{environ['REQUEST_METHOD']} {environ['PATH_INFO'].removeprefix('/shards/')}"] += 1
            failed = self.fails and self.count % self.fails == 0
        if failed or self.expired:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, said = EXPIRED if self.expired else self.fault
            # HTTP allows an answer to HEAD no content; a client that finds some calls the connection broken.
            content = b"" if environ["REQUEST_METHOD"] == "HEAD" else said.encode()
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
            return [content]
        return self.app(environ, start_response)  # type: ignore[no-any-return]

    @functools.cached_property
    def client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.url)

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Name -> bytes of what lies in the bucket."""
        found = self.client.list_objects_v2(Bucket="shards", Prefix=prefix).get("Contents", [])
        return {one["Key"]: one["Size"] for one in found}

    def content(self, prefix: str) -> dict[str, bytes]:
        """What is behind a prefix in its name -> content."""
        client = self.client
        return {
            key.removeprefix(prefix): client.get_object(Bucket="shards", Key=key)["Body"].read()
            for key in self.objects(prefix)
        }

    def clear(self) -> None:
        """All is as at the beginning: the bucket is there and empty."""
        self.fails, self.fault, self.expired = 0, BUSY, False
        client = self.client
        client.create_bucket(Bucket="shards")
        for key in self.objects():
            client.delete_object(Bucket="shards", Key=key)
        self.asked.clear()


def below(folder: Path) -> dict[str, bytes]:
    """As `Bucket.content`, of a folder."""
    return {f"/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def interrupted_after(files: int) -> Iterator[None]:
    """Ctrl-C comes when one more file is put elsewhere."""
    put, done = elsewhere.put, []

    def interrupted(path: Path, url: str) -> None:
        if len(done) == files:
            raise KeyboardInterrupt
        put(path, url)
        done.append(url)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(elsewhere, "put", interrupted)
        yield
