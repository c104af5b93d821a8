"""One data set that is to be made: what is in its source, what it is made with, where it goes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from samforge.core.bundle import Bundle
from samforge.core.devices import AUTO, checked_device, require_kind
from samforge.core.errors import OutputError, PromptError
from samforge.core.files import output_errors, writable_folder
from samforge.core.manifest import verified
from samforge.core.own_folder import require_outside_bundles
from samforge.core.targets import target_from_name
from samforge.core.version import __version__
from samforge.formats import DataSet
from samforge.labelling.engine import Chunk, batch_for, chunks_from_items
from samforge.labelling.export import Pictures, export, labelled_pictures, remove_left_behind
from samforge.labelling.items import Item, Listing, SourceError, require_numbers
from samforge.labelling.ledger import NAME, Ledger
from samforge.labelling.ontology import Ontology
from samforge.labelling.opening import Opening, openings
from samforge.labelling.places import exists
from samforge.labelling.settings import LabelPlan, LabelResult, LabelSettings
from samforge.labelling.sources import listed
from samforge.runtime.prompts import exemplars_from_boxes


class LabelJob:
    """What :func:`samforge.label` was asked for, checked before anything runs."""

    def __init__(
        self,
        bundle: Bundle,
        sources: Sequence[str | Path],
        ontology: Ontology,
        out: Path,
        settings: LabelSettings,
    ) -> None:
        """List the source.

        Raises:
            SourceError: A source cannot be listed, or holds nothing.
            OutputError: The output would be inside a bundle.
            PromptError: An exemplar is on no picture of the source.
        """
        require_outside_bundles(out, "--out")
        self.out = out.absolute()
        self._bundle, self._ontology, self._settings = bundle, ontology, settings
        self._listings: list[Listing] = listed(sources, pictures=settings.pictures, out=self.out)
        self.items: list[Item] = [item for one in self._listings for item in one.items]
        order = list(range(len(self.items)))
        if settings.shuffle is not None:
            random.Random(settings.shuffle).shuffle(order)  # noqa: S311  # of pictures
        self._order = order[: settings.limit]
        self.chosen: Sequence[int] = sorted(self._order)
        self._check_exemplars()

    def identity(self) -> dict[str, Any]:
        """What has to be the same for labels to stand in one data set."""
        return {
            "samforge": __version__,
            "bundle": self._bundle.digest,
            "ontology": self._ontology.to_dict(),
            "source": [one.root for one in self._listings],
        }

    def folder(self) -> Path:
        """The output folder, made and proven to be writable.

        Raises:
            OutputError: It is none of an earlier run, or cannot be written.
        """
        ledger = self.out / NAME
        with output_errors(self.out):
            strange = self.out.is_dir() and not ledger.exists() and any(self.out.iterdir())
        if strange:
            raise OutputError(
                f"{self.out} is not empty, and no earlier run of samforge label: it has no {NAME}. "
                "Choose a new folder."
            )
        return writable_folder(self.out)

    def ledger(self) -> Ledger:
        """The ledger of this run, which no other run has; leavings of a killed one are removed.

        Raises:
            OtherRun: The folder holds labels of another bundle, ontology, version or source.
            OutputError: Another run is at work, or the folder cannot be written.
        """
        with ExitStack() as undo:
            place = self.folder() / NAME
            ledger = undo.enter_context(Ledger(place, restart=self._settings.restart))
            # Only now is it sure that no other run works on what is removed.
            ledger.identify(self.identity())
            # Of all of them, before any is labelled.
            require_numbers(self.items, ledger.numbers(self.items))
            remove_left_behind(self.out)
            undo.pop_all()
        return ledger

    def chunks(self, done: Collection[int]) -> list[Chunk]:
        """What is left to do."""
        batch = self._settings.batch or batch_for(self._device())
        return chunks_from_items(self.items, self._order, batch, done)

    def plan(self, done: Collection[int]) -> LabelPlan:
        """What is going to be done."""
        return LabelPlan(
            items=len(self.items),
            chosen=len(self.chosen),
            done=len(set(self.chosen) & set(done)),
            phrases=tuple(self._ontology.phrases),
            notes=self._notes(),
        )

    def openings(self) -> list[Opening]:
        """How each process loads the model.

        Raises:
            SettingError: The bundle does not run on the device, or nobody can tell on which.
        """
        target = target_from_name(self._bundle.manifest.target)
        device = self._device()
        made = openings(
            str(self._bundle.root),
            self._bundle.digest,
            device=device,
            threads=self._settings.threads,
            jobs=self._settings.jobs,
        )
        require_kind(str(self._bundle.root), checked_device(device), target.devices)
        return made

    @property
    def ontology(self) -> Ontology:
        """What is labelled."""
        return self._ontology

    def require_sources(self) -> None:
        """Make sure that the source is still there.

        Raises:
            SourceError: It is not.
        """
        for one in self._listings:
            if not exists(one.root):
                raise SourceError(
                    f"The source {one.root} is gone. What was labelled is kept in {self.out}: "
                    "bring the source back and run again."
                )

    def written(
        self, ledger: Ledger, *, labelled: int, resumed: int, seconds: float, processor: str
    ) -> LabelResult:
        """Write the data sets from the ledger."""
        names = self._ontology.names
        with Pictures(self.items) as pictures:
            data = DataSet(
                categories=names,
                provenance=self.provenance(),
                picture=pictures.read,
                copy_pictures=self._settings.copy_pictures,
            )
            files = export(ledger, self.items, self.chosen, self.out, self._settings.formats, data)
        counts: Counter[int] = Counter()
        found = 0
        for picture in labelled_pictures(ledger, self.items, self.chosen):
            found += 1
            counts.update(one.category for one in picture.objects)
        return LabelResult(
            out=self.out,
            files=files,
            pictures=found,
            objects={name: counts[number] for number, name in enumerate(names)},
            labelled=labelled,
            resumed=resumed,
            failures=tuple(ledger.failures([self.items[i] for i in self.chosen])),
            notes=self._notes(),
            seconds=seconds,
            processor=processor,
        )

    def provenance(self) -> dict[str, Any]:
        """Which model made the labels, of what, and how: the same in every run."""
        manifest = self._bundle.manifest
        return {
            "samforge": __version__,
            "bundle": self._bundle.digest,
            "model": manifest.model,
            "target": manifest.target,
            "precision": str(manifest.recipe.get("precision", "fp32")),
            "reference": manifest.reference,
            "parents": dict(manifest.parents),
            "verified": verified(manifest),
            "weights_license": manifest.weights_license,
            "ontology": self._ontology.to_dict(),
            "ontology_sha256": self._ontology.digest,
            "sources": [one.root for one in self._listings],
        }

    def _notes(self) -> tuple[str, ...]:
        return tuple(note for one in self._listings for note in one.notes)

    def _device(self) -> str:
        if self._settings.device != AUTO:
            return self._settings.device
        kinds = target_from_name(self._bundle.manifest.target).devices
        return kinds[0] if len(kinds) == 1 else AUTO  # what it was compiled for

    def _check_exemplars(self) -> None:
        """Exemplar boxes lie on pictures of the source, inside them.

        SAM 3's detector reads a box in the features of the picture it looks at: the geometry
        encoder pools ``fpn_2`` of that picture under the box (models/sam3/detector.py), so a box on
        another picture would mean another thing.
        """
        shown = self._ontology.exemplar_pictures
        if not shown:
            return
        items = {item.name: item for item in self.items}
        if absent := [name for name in shown if name not in items]:
            raise PromptError(
                f"The ontology has exemplar boxes on {absent[0]!r}, which is no picture of the "
                "source. SAM 3 reads a box in the picture that it searches, so boxes on one "
                "picture say nothing about another. Name pictures of the source as it names them "
                f"({next(iter(items))}), or describe the class with phrases."
            )
        with Pictures(self.items) as pictures:
            for name, boxes in shown.items():
                rgb = pictures.rgb(name)
                for _, one in boxes:
                    try:
                        exemplars_from_boxes(one.boxes_xyxy, one.box_labels, rgb.shape[:2])
                    except PromptError as error:
                        raise PromptError(f"The exemplars on {name}: {error}") from error
