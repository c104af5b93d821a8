"""LitServe over the library's plain call: ``python with_litserve.py BUNDLE PORT``.

It reads the types of its arguments as they are: no annotations from the future.
"""

import sys
from typing import Any

import litserve as ls
from fastapi import UploadFile

import samforge


class Predict(ls.LitAPI):
    """Takes a picture."""

    def setup(self, device: Any) -> None:  # noqa: ARG002  # LitServe's
        """Load the bundle."""
        self.segmenter = samforge.load(sys.argv[1])

    def decode_request(self, request: UploadFile) -> bytes:
        """A picture; the phrase is the same for all, for a form with both cannot be handed on."""
        return request.file.read()

    def predict(self, image: bytes) -> Any:
        """The plain call."""
        return self.segmenter.predict(image, text="red circle")

    def encode_response(self, found: Any) -> dict[str, Any]:
        """Runs of pixels."""
        return {"detections": found.to_coco()}


if __name__ == "__main__":
    server = ls.LitServer(Predict(), accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
