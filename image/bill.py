#!/usr/bin/env python3
"""Print the bill of materials of a wheel: SPDX 2.3 of what a lock names, with its hashes.

usage: bill.py VERSION LOCK
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path


def main(version: str, lock: Path) -> None:
    """Print the document; the same lock gives the same document."""
    text = lock.read_text("utf-8").replace("\\\n", " ")
    pins = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^\s;]+)", text, re.MULTILINE)
    ours = package("pg-preflight", version, f"pkg:generic/pg-preflight@{version}")
    listed = [package(name, pin, f"pkg:pypi/{name}@{pin}") for name, pin in pins]
    built = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"pg-preflight-{version}",
        "documentNamespace": f"https://spdx.org/spdxdocs/pg-preflight-wheel-{version}-{digest}",
        "creationInfo": {
            "created": built.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: pg-preflight-bill.py"],
        },
        "packages": [ours, *listed],
        "relationships": [
            relation("SPDXRef-DOCUMENT", "DESCRIBES", ours),
            *(relation(str(ours["SPDXID"]), "DEPENDS_ON", each) for each in listed),
        ],
    }
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def package(name: str, version: str, purl: str) -> dict[str, object]:
    """Return one entry."""
    return {
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", purl.partition("@")[0]),
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "Apache-2.0" if name == "pg-preflight" else "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": purl,
            }
        ],
    }


def relation(element: str, kind: str, related: dict[str, object]) -> dict[str, object]:
    """Return one relationship."""
    return {
        "spdxElementId": element,
        "relationshipType": kind,
        "relatedSpdxElement": related["SPDXID"],
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
