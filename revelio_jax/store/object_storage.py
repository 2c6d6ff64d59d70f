"""TensorStore's settings for object storage: addresses, credentials and retries.

TensorStore does not read the variables of AWS for the region and for another server, for example MinIO or Ceph.
"""

import os
import typing

import tensorstore as ts

# Throttled (503), slow and failed requests are repeated for about one minute. TensorStore's default is 15 minutes,
# which it would also wait for a server that does not exist.
RETRIES = {"max_retries": 7, "initial_delay": "1s", "max_delay": "16s"}

REMOTE = ("gs", "s3")
"""The schemes of object storage that can be written."""


def is_remote(location: str) -> bool:
    """Return whether a location is on object storage that can be written."""
    return location.partition("://")[0] in REMOTE and "://" in location


def resources(retries: dict[str, typing.Any] = RETRIES) -> dict[str, typing.Any]:
    """Return the TensorStore context of this process: retries, and credentials if AWS_ACCESS_KEY_ID is set."""
    made: dict[str, typing.Any] = {f"{driver}_request_retries": retries for driver in ("s3", "gcs", "http")}
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        # TensorStore would first look for the files of AWS, and print lines about those that are missing.
        made["aws_credentials"] = {"type": "environment"}
    return made


def spec(url: str) -> str | dict[str, typing.Any]:
    """Return the TensorStore spec of a URL that ends with a slash.

    ``s3://`` uses the server AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL and the region AWS_REGION or AWS_DEFAULT_REGION if
    they are set. Without a region, TensorStore asks the bucket for it.
    """
    scheme, _, rest = url.partition("://")
    if scheme != "s3":
        return url
    bucket, _, path = rest.partition("/")
    made: dict[str, typing.Any] = {"driver": "s3", "bucket": bucket, "path": path}
    environment = os.environ
    if endpoint := environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"):
        made["endpoint"] = endpoint.rstrip("/")
    if region := environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"):
        made["aws_region"] = region
    return made


def url_of(kvstore: ts.KvStore) -> str:
    """Return the URL of a key-value store. TensorStore has none for an S3 server that is not Amazon's."""
    made = kvstore.spec().to_json()
    if made["driver"] == "s3":
        return f"s3://{made['bucket']}/{made.get('path', '')}"
    return kvstore.url
