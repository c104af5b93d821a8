"""The vision part, the text part and the detectors, with what lies between their calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from samforge.core.axes import PROMPTS
from samforge.core.capabilities import DETECTOR, TEXT_ENCODER, VISION
from samforge.core.images import ImageSpec
from samforge.core.session import DeviceSession, fixed_axis, largest_of
from samforge.runtime.device.graphs import Graphs
from samforge.runtime.device.marks import Marks
from samforge.runtime.device.phrases import PhraseFeatures
from samforge.runtime.device.resize import Resizer
from samforge.runtime.device.results import summary
from samforge.runtime.device.session import placed, run
from samforge.runtime.question import Question
from samforge.runtime.tokenize import PhraseTokenizer


class Network:
    """From pictures on a device to what a detector says of them.

    Inputs and outputs lie at fixed addresses, so that every combination of batch and phrase count
    is captured once as CUDA graphs, where sessions allow it. Its caller has entered the device, one
    thread at a time.
    """

    def __init__(
        self,
        sessions: Mapping[str, DeviceSession],
        image: ImageSpec,
        tokenizer: PhraseTokenizer,
        device: torch.device,
        *,
        graphs: bool,
    ) -> None:
        """Make what it needs on the device.

        Args:
            sessions: By part, all on the device.
            image: How the model wants its images.
            tokenizer: Of the same context length as the text part.
            device: Where everything lies.
            graphs: Whether calls are captured where sessions allow it.
        """
        self.resize = Resizer(image, device)
        self._sessions, self._image, self._device = sessions, image, device
        text = sessions[TEXT_ENCODER]
        batch = fixed_axis(text.spec, "input_ids", 0) or largest_of(text, PROMPTS.name)
        self._text = PhraseFeatures(text, tokenizer, batch=batch)
        graphs = graphs and all(session.captures for session in sessions.values())
        # Memory apart: the next pictures are encoded before masks are made of the last detector's.
        self._of_vision, self._of_detectors = (Graphs(device, graphs) for _ in "vd")
        self._static: dict[Any, dict[str, Tensor]] = {}

    def vision(self, pictures: Sequence[Tensor], marks: Marks) -> dict[str, Tensor]:
        """Encode pictures into the features of their number, which :meth:`detect` reads.

        Args:
            pictures: (H, W, 3) each, uint8, on the device.
            marks: Takes the stages.

        Returns:
            Every output of the part, where the next call for so many pictures writes again.
        """
        batch, vision = len(pictures), self._sessions[VISION]
        size = self._image.size
        marks.begin()
        images = self._buffers(
            ("images", batch), vision, {"images": torch.empty(batch, 3, size, size)}
        )
        for index, rgb in enumerate(pictures):
            self.resize(rgb, images["images"][index])
        marks.end("preprocess")
        outputs = self._of_vision.run(batch, lambda: run(vision, images))
        marks.end(VISION)
        # At fixed addresses: the graph's own outputs, which the detector's graph reads.
        self._static["features", batch] = dict(outputs)
        return self._static["features", batch]

    def fill(self, encoded: Sequence[Mapping[str, Tensor]]) -> None:
        """Put features of encoded images where :meth:`detect` reads those of their number."""
        batch = len(encoded)
        if ("features", batch) not in self._static:
            side = self._image.size
            blank = torch.zeros(side, side, 3, dtype=torch.uint8, device=self._device)
            self.vision([blank] * batch, Marks(timings=None, device=self._device, processor=""))
        features = self._static["features", batch]
        for name, place in features.items():
            torch.cat([one[name] for one in encoded], out=place)

    def words(self, phrases: tuple[str, ...], marks: Marks) -> tuple[Tensor, Tensor]:
        """Features (P, L, D) and mask (P, L) of phrases: each is encoded once."""
        marks.begin_if_idle()
        features = self._text(phrases)
        marks.end(TEXT_ENCODER)
        return features

    def detect(
        self,
        name: str,
        question: Question,
        batch: int,
        marks: Marks,
        make_room: Callable[[], None],
    ) -> dict[str, Tensor]:
        """Run a detector on the features of so many images.

        Args:
            name: Of the part.
            question: What each image is asked.
            batch: Images whose features :meth:`vision` made or :meth:`fill` put in place.
            marks: Takes the stages.
            make_room: Called before the detector runs, for it writes where it wrote the time
                before (its CUDA graph does).

        Returns:
            Its outputs, and ``summary``: see ``results.summary``.
        """
        detector, count = self._sessions[name], len(question.phrases)
        words, mask = self.words(question.phrases, marks)
        prompt = self._buffers(
            ("words", name, count), detector, {"text_features": words, "text_mask": mask}
        )
        prompt["text_features"].copy_(words)
        prompt["text_mask"].copy_(mask)
        boxes, slots = self._boxes(name, question)
        features = self._static["features", batch]
        wanted = {tensor.name for tensor in detector.spec.inputs}
        features = {key: tensor for key, tensor in features.items() if key in wanted}

        def call() -> dict[str, Tensor]:
            # What vision gives is mostly what the detector wants: nothing is copied then.
            outputs = run(detector, {**placed(detector, features), **prompt, **boxes})
            return {**outputs, "summary": summary(outputs)}

        where = features["fpn_0"].data_ptr()
        make_room()
        outputs = self._of_detectors.run((name, batch, count, slots, where), call)
        marks.end(DETECTOR)
        return outputs

    def forget_text(self) -> None:
        """Drop what is remembered of phrases."""
        self._text.forget()

    def clear(self) -> None:
        """Free every graph, and what lies on the device."""
        self._of_vision.clear()
        self._of_detectors.clear()
        self._static.clear()
        self._text.forget()

    def _boxes(self, name: str, question: Question) -> tuple[dict[str, Tensor], int]:
        """Boxes at fixed addresses, and how many the call holds."""
        if question.exemplars is None:
            return {}, 0
        detector = self._sessions[name]
        arrays = question.exemplars.tensors(fixed_axis(detector.spec, "boxes_cxcywh", 2))
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        slots = int(tensors["box_labels"].shape[2])
        boxes = self._buffers(("exemplars", name, slots), detector, tensors)
        for key, tensor in tensors.items():
            boxes[key].copy_(tensor)
        return boxes, slots

    def _buffers(
        self, key: Any, session: DeviceSession, tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Inputs at fixed addresses, made at first use."""
        if key not in self._static:
            self._static[key] = {
                name: tensor.clone() for name, tensor in placed(session, tensors).items()
            }
        return self._static[key]
