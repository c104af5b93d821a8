"""LitServe over the library's plain call: ``python with_litserve.py BUNDLE PORT``."""

from __future__ import annotations

import sys
from typing import Any

import litserve as ls
from fastapi import Request

import samforge


class Predict(ls.LitAPI):
    """Takes a form with a picture and a phrase."""

    def setup(self, device: Any) -> None:  # noqa: ARG002  # LitServe's
        """Load the bundle."""
        self.segmenter = samforge.load(sys.argv[1])

    def decode_request(self, request: Request) -> tuple[bytes, str]:
        """A picture and a phrase."""
        return request["image"].file.read(), request["text"]

    def predict(self, asked: tuple[bytes, str]) -> Any:
        """The plain call."""
        return self.segmenter.predict(asked[0], text=asked[1])

    def encode_response(self, found: Any) -> dict[str, Any]:
        """Runs of pixels."""
        return {"detections": found.to_coco()}


if __name__ == "__main__":
    server = ls.LitServer(Predict(), accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
