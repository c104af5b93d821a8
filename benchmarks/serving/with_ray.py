"""Ray Serve over the library's plain call: ``python with_ray.py BUNDLE PORT``.

It reads the types of its arguments as they are: no annotations from the future.
"""

import sys
import time

import ray
from fastapi import FastAPI, Form, UploadFile
from ray import serve

app = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
@serve.ingress(app)
class Predict:
    """Takes a form with a picture and a phrase."""

    def __init__(self, bundle: str) -> None:
        import samforge

        self.segmenter = samforge.load(bundle)

    @app.get("/health")
    def health(self) -> str:
        """It is there."""
        return "ok"

    @app.post("/predict")
    def predict(self, image: UploadFile, text: str = Form()) -> dict[str, object]:
        """The plain call."""
        found = self.segmenter.predict(image.file.read(), text=text)
        return {"detections": found.to_coco()}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Predict.bind(sys.argv[1]))
    while True:
        time.sleep(60)
