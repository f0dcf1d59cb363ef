"""Whether a bucket of S3 has a rule that ends the uploads which a killed run left.

The library cannot ask, so it is asked here, with the keys of the environment: where a role gives
them, nobody asks. It is advice alone: whatever goes wrong, nothing is said.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

LIMIT_S = 3.0
MOST_BYTES = 1 << 20
ANSWER, RULE = b"<LifecycleConfiguration", b"<AbortIncompleteMultipartUpload"
NONE = b"<Code>NoSuchLifecycleConfiguration</Code>"
_NOTHING = hashlib.sha256(b"").hexdigest()


def unruled(bucket: str, endpoint: str | None, environment: Mapping[str, str]) -> bool:
    """Tell whether it is seen that there is no such rule."""
    if not environment.get("AWS_ACCESS_KEY_ID") or not environment.get("AWS_SECRET_ACCESS_KEY"):
        return False
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
    with suppress(OSError, ValueError, http.client.HTTPException):
        return _asked(endpoint or f"https://s3.{region}.amazonaws.com", bucket, region, environment)
    return False


def _asked(endpoint: str, bucket: str, region: str, environment: Mapping[str, str]) -> bool:
    parts = urlsplit(endpoint)
    path = f"{parts.path.rstrip('/')}/{quote(bucket)}"
    headers = signed(parts.netloc, path, region, environment, datetime.now(UTC))
    kind = http.client.HTTPConnection if parts.scheme == "http" else http.client.HTTPSConnection
    server = kind(parts.netloc, timeout=LIMIT_S)
    try:
        server.request("GET", f"{path}?lifecycle=", headers=headers)
        answer = server.getresponse()
        text = answer.read(MOST_BYTES)
    finally:
        server.close()
    if "minio" in (answer.headers["Server"] or "").lower():  # it ends them by itself
        return False
    return NONE in text or (ANSWER in text and RULE not in text)


def signed(
    host: str, path: str, region: str, environment: Mapping[str, str], now: datetime
) -> dict[str, str]:
    """Return the headers of a GET of a bucket's rules, signed as S3 wants it (version 4)."""
    headers = {
        "host": host,
        "x-amz-content-sha256": _NOTHING,
        "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}",
    }
    if token := environment.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    names = ";".join(headers)
    said = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"GET\n{path}\nlifecycle=\n{said}\n{names}\n{_NOTHING}"
    scope = (f"{now:%Y%m%d}", region, "s3", "aws4_request")
    key = f"AWS4{environment['AWS_SECRET_ACCESS_KEY']}".encode()
    for each in scope:
        key = hmac.digest(key, each.encode(), "sha256")
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{'/'.join(scope)}\n{digest}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={environment['AWS_ACCESS_KEY_ID']}/{'/'.join(scope)}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return headers
