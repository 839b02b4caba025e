"""The part of the stand-in W&B server that takes artifacts: models, and what tables are kept in.

What wandb 0.31 sends was found by logging it. It asks who the user is, and of what type an artifact
of that name is. Then come `CreateArtifact` with aliases and metadata, a manifest without content,
the files (each gets an address, to which it is PUT), the manifest's content, and `CommitArtifact`.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StoredArtifact:
    """A version of an artifact."""

    name: str
    kind: str
    aliases: list[str]
    metadata: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    committed: bool = False


class Artifacts:
    """Answers what is asked of artifacts, and keeps what is PUT."""

    def __init__(self) -> None:
        self.all: list[StoredArtifact] = []
        self.url = ""
        self._lock = threading.Lock()

    def of_type(self, kind: str) -> list[StoredArtifact]:
        return [stored for stored in self.all if stored.kind == kind and stored.committed]

    def answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """None if it is no question of an artifact."""
        given = variables.get("input") or variables
        match name:
            case "Viewer":
                user = {"id": "v", "entity": "ent", "username": "u", "email": "u@e"}
                return {"viewer": {**user, "flags": "{}", "teams": {"edges": []}}}
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateArtifact":
                aliases = [alias["alias"] for alias in given["aliases"] or []]
                names = (given["artifactCollectionName"], given["artifactTypeName"])
                metadata = json.loads(given["metadata"] or "{}")
                self.all.append(StoredArtifact(*names, aliases, metadata))
                number = f"A{len(self.all) - 1}"
                sequence = {"id": f"S{number}", "latestArtifact": None}
                made = {"id": number, "state": "PENDING", "artifactSequence": sequence}
                return {"createArtifact": {"artifact": made}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                answer = f"{name[0].lower()}{name[1:]}"
                number = given.get("artifactID") or given["artifactManifestID"].removeprefix("M")
                file = self._file(number, "wandb_manifest.json")
                return {answer: {"artifactManifest": {"id": f"M{number}", "file": file}}}
            case "CreateArtifactFiles":
                nodes = [
                    {**self._file(file["artifactID"], file["name"]), "artifact": {"id": "A"}}
                    for file in given["artifactFiles"]
                ]
                return {"createArtifactFiles": {"files": {"edges": [{"node": n} for n in nodes]}}}
            case "CommitArtifact":
                number = given["artifactID"]
                self.all[int(number[1:])].committed = True
                return {"commitArtifact": {"artifact": {"id": number, "digest": "d"}}}
            case "ArtifactByID":
                return {"artifact": self._described(int(given["id"][1:]))}
        return None

    def take(self, path: str, body: bytes) -> None:
        """What is PUT to an address of `_file`."""
        _, _, number, name = path.split("/", 3)
        stored = self.all[int(number[1:])]
        with self._lock:
            if name == "wandb_manifest.json":
                stored.manifest = json.loads(body)
            else:
                stored.files[name] = body

    def _file(self, number: str, name: str) -> dict[str, Any]:
        return {
            "id": f"{number}/{name}",
            "name": name,
            "displayName": name,
            "uploadUrl": f"{self.url}/artifacts/{number}/{name}",
            "uploadHeaders": [],
            "storagePath": None,
            "uploadMultipartUrls": None,
        }

    def _described(self, number: int) -> dict[str, Any]:
        stored = self.all[number]
        project = {"name": "p", "entity": {"name": "ent"}, "id": "p", "internalId": "aQ=="}
        collection = {"__typename": "ArtifactSequence", "id": "S", "name": stored.name,
                      "project": project}  # fmt: skip
        return {
            "__typename": "Artifact",
            "id": f"A{number}",
            "artifactSequence": collection,
            "artifactType": {"id": "T", "name": stored.kind},
            "versionIndex": number,
            "description": None,
            "metadata": json.dumps(stored.metadata),
            "state": "COMMITTED",
            "size": 1,
            "digest": "d",
            "commitHash": "c",
            "fileCount": len(stored.files),
            "createdAt": "2024-01-01T00:00:00",
            "updatedAt": None,
            "aliases": [],
            "tags": [],
            "historyStep": None,
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
        }
