"""What the sink does at each request of S3's API, and what it answers."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import quote
from xml.etree import ElementTree

from benchmarks.sink_shelf import Refused, Shelf, Stored
from benchmarks.sink_wire import Answer, Request, tag, xml

LISTED = 1000
MARKERS = ("uploadId", "uploads", "delete", "location", "acl", "policy", "tagging", "versioning", "versions")
"""What a query may ask for instead of the object or bucket itself; what ACTIONS has not is refused."""


class Service:
    """Requests to answers."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def answer(self, request: Request) -> Answer:
        """Do what is asked."""
        scope = "object" if "/" in request.path.rstrip("/") else "bucket"
        marker = next((name for name in MARKERS if name in request.query), "")
        action = ACTIONS.get((request.method, scope, marker))
        if action is None:
            raise Refused(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented")
        return action(self, request)

    def bucket(self, request: Request) -> Answer:
        """Every bucket is there, and stays."""
        return Answer(HTTPStatus.NO_CONTENT if request.method == "DELETE" else HTTPStatus.OK)

    def location(self, _: Request) -> Answer:
        """The default region."""
        return xml("LocationConstraint", "")

    def versioning(self, _: Request) -> Answer:
        """None."""
        return xml("VersioningConfiguration", "")

    def put(self, request: Request) -> Answer:
        """Store an object."""
        stored = Stored((request.body,), request.named("x-amz-meta-", "content-type", "x-amz-checksum-"))
        self._shelf.put(request.path, stored, new="if-none-match" in request.headers)
        return Answer(headers={"ETag": stored.etag, **request.named("x-amz-checksum-")})

    def create(self, request: Request) -> Answer:
        """Begin an upload; its number 0 is the object to be."""
        upload = os.urandom(16).hex()
        self._shelf.uploads[upload] = {0: Stored((), request.named("x-amz-meta-", "content-type"))}
        return xml("InitiateMultipartUploadResult", self._place(request.path) + tag("UploadId", upload))

    def put_part(self, request: Request) -> Answer:
        """Store a part."""
        parts = self._shelf.parts(request.query["uploadId"])
        number = request.query.get("partNumber", "")
        if not number.isdecimal() or not int(number):
            raise Refused(HTTPStatus.BAD_REQUEST, "InvalidArgument")
        stored = parts[int(number)] = Stored((request.body,), {})
        return Answer(headers={"ETag": stored.etag, **request.named("x-amz-checksum-")})

    def complete(self, request: Request) -> Answer:
        """Make one object of the parts that are listed."""
        upload = request.query["uploadId"]
        parts = self._shelf.parts(upload)
        listed = [
            (int(part.findtext("{*}PartNumber", "0")), part.findtext("{*}ETag", "").strip('"'))
            for part in ElementTree.fromstring(request.text()).iterfind("{*}Part")
        ]
        if not listed or any(number not in parts or parts[number].etag.strip('"') != etag for number, etag in listed):
            raise Refused(HTTPStatus.BAD_REQUEST, "InvalidPart")
        stored = Stored(tuple(parts[number].blobs[0] for number, _ in listed), parts[0].headers)
        self._shelf.put(request.path, stored, new="if-none-match" in request.headers)
        del self._shelf.uploads[upload]
        return xml("CompleteMultipartUploadResult", self._place(request.path) + tag("ETag", stored.etag))

    def abort(self, request: Request) -> Answer:
        """Forget an upload."""
        self._shelf.uploads.pop(request.query["uploadId"], None)
        return Answer(HTTPStatus.NO_CONTENT)

    def get(self, request: Request) -> Answer:
        """An object or a range of it."""
        stored = self._shelf.find(request.path)
        if request.headers.get("if-match", stored.etag).strip('"') != stored.etag.strip('"'):
            raise Refused(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
        wanted = _range(request.headers.get("range", ""), stored.size)
        start, stop = wanted or (0, stored.size)
        headers = {
            "ETag": stored.etag,
            "Accept-Ranges": "bytes",
            "Last-Modified": formatdate(stored.modified, usegmt=True),
        }
        status = HTTPStatus.OK
        if wanted:
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
        told = "x-amz-checksum-mode" in request.headers and not wanted
        headers |= {name: value for name, value in stored.headers.items() if told or "-checksum-" not in name}
        return Answer(status, headers, stored.slices(start, stop), stop - start)

    def delete(self, request: Request) -> Answer:
        """Delete an object, if it is there."""
        self._shelf.objects.pop(request.path, None)
        return Answer(HTTPStatus.NO_CONTENT)

    def delete_many(self, request: Request) -> Answer:
        """Delete the objects that are listed."""
        keys = [found.text or "" for found in ElementTree.fromstring(request.text()).iterfind("{*}Object/{*}Key")]
        for key in keys:
            self._shelf.objects.pop(f"{request.path.strip('/')}/{key}", None)
        return xml("DeleteResult", "".join(f"<Deleted>{tag('Key', key)}</Deleted>" for key in keys))

    def listing(self, request: Request) -> Answer:
        """A page of keys, in either version of the request."""
        query, bucket = request.query, request.path.strip("/") + "/"
        after = max(query.get(name, "") for name in ("continuation-token", "start-after", "marker"))
        names = _names(self._keys(bucket), query.get("prefix", ""), query.get("delimiter", ""), after)
        page = list(itertools.islice(names.items(), min(int(query.get("max-keys", LISTED)), LISTED)))
        shown = quote if query.get("encoding-type") == "url" else str
        content = [tag("EncodingType", "url")] if shown is quote else []
        for name, whole in page:
            content.append(self._entry(bucket, name, shown) if whole else _prefix(shown(name)))
        content += [tag("Name", bucket[:-1]), tag("Prefix", shown(query.get("prefix", ""))), tag("KeyCount", len(page))]
        content.append(tag("IsTruncated", "true" if len(page) < len(names) else "false"))
        if page and len(page) < len(names):
            content += [tag("NextContinuationToken", page[-1][0]), tag("NextMarker", shown(page[-1][0]))]
        return xml("ListBucketResult", "".join(content))

    def _keys(self, bucket: str) -> list[str]:
        return sorted(path[len(bucket) :] for path in list(self._shelf.objects) if path.startswith(bucket))

    def _entry(self, bucket: str, key: str, shown: Callable[[str], str]) -> str:
        stored = self._shelf.find(bucket + key)
        modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.modified))
        facts = tag("ETag", stored.etag) + tag("Size", stored.size) + tag("LastModified", modified)
        return f"<Contents>{tag('Key', shown(key))}{facts}{tag('StorageClass', 'STANDARD')}</Contents>"

    @staticmethod
    def _place(path: str) -> str:
        bucket, _, key = path.partition("/")
        return tag("Bucket", bucket) + tag("Key", key)


ACTIONS: Mapping[tuple[str, str, str], Callable[[Service, Request], Answer]] = {
    **{(method, "bucket", ""): Service.bucket for method in ("HEAD", "PUT", "DELETE")},
    ("GET", "bucket", ""): Service.listing,
    ("GET", "bucket", "location"): Service.location,
    ("GET", "bucket", "versioning"): Service.versioning,
    ("POST", "bucket", "delete"): Service.delete_many,
    ("GET", "object", ""): Service.get,
    ("HEAD", "object", ""): Service.get,
    ("PUT", "object", ""): Service.put,
    ("DELETE", "object", ""): Service.delete,
    ("POST", "object", "uploads"): Service.create,
    ("PUT", "object", "uploadId"): Service.put_part,
    ("POST", "object", "uploadId"): Service.complete,
    ("DELETE", "object", "uploadId"): Service.abort,
}


def _names(keys: Iterable[str], prefix: str, delimiter: str, after: str) -> dict[str, bool]:
    """The keys after ``after``, and the prefixes that stand for many; whether each is a key."""
    names = {}
    for key in keys:
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        name = key if cut < 0 else key[: cut + len(delimiter)]
        if key.startswith(prefix) and name > after:
            names[name] = cut < 0
    return names


def _prefix(shown: str) -> str:
    return f"<CommonPrefixes>{tag('Prefix', shown)}</CommonPrefixes>"


def _range(asked: str, size: int) -> tuple[int, int] | None:
    """Start and stop of the one range that is asked for, if any is."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if not found or not any(found.groups()):
        return None
    first, last = found.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "InvalidRange")
    return start, stop
