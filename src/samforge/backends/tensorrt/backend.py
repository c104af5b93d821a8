"""The backend both flavours share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samforge.backends.tensorrt.build import EngineReport, engine_from_onnx
from samforge.backends.tensorrt.capabilities import first_form
from samforge.backends.tensorrt.cuda import gpu_here
from samforge.backends.tensorrt.library import Flavour, installed_version, version_number
from samforge.backends.tensorrt.reporting import Progress
from samforge.backends.tensorrt.session import EngineSession
from samforge.backends.tensorrt.settings import EngineSettings
from samforge.backends.tensorrt.stamp import read_stamp
from samforge.core.computation import Computation
from samforge.core.devices import CUDA, gpu_index, require_kind
from samforge.core.errors import SettingError
from samforge.core.session import PartSpec, Session, checked_options


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRTBackend:
    """Engine -> session, and the build before it."""

    flavour: Flavour
    """Which of the two products."""

    @property
    def name(self) -> str:
        """As in ``--target``."""
        return self.flavour.name

    def version(self) -> str | None:
        """Version of the installed package, or None where it cannot run: not installed, no GPU."""
        return self.build_version() if gpu_here() is not None else None

    def build_version(self) -> str | None:
        """Version of the installed package, GPU or not."""
        return installed_version(self.flavour)

    def processors(self, runtime: Any) -> tuple[str, ...]:
        """The GPU at hand. Making a builder is what fails without libraries or a driver."""
        runtime.Builder(runtime.Logger(runtime.Logger.ERROR))
        found = tuple(f"GPU of compute capability {one}" for one in self.capabilities_here())
        return found or ("builds engines; no GPU here to run them",)

    def capabilities_here(self) -> tuple[str, ...]:
        """Compute capability of the GPU at hand, ``("89",)``; empty where there is none."""
        gpu = gpu_here()
        return () if gpu is None else (gpu.compute_capability,)

    def first_form(self, named: tuple[str, ...] = ()) -> str:
        """Form of attention to begin with, one of ``capabilities.FORMS``.

        Args:
            named: Compute capabilities the engine is for; empty takes the GPU at hand, as the
                build does. Without either the form is ``fused``.
        """
        version = version_number(self.build_version() or "0.0")
        return first_form(self.flavour, version, named or self.capabilities_here())

    def engine_from_onnx(  # noqa: PLR0913  # two files, what they are, and three options
        self,
        onnx: Path,
        engine: Path,
        spec: PartSpec,
        settings: EngineSettings,
        *,
        form: str = "fused",
        planned: Computation | None = None,
        progress: Progress | None = None,
    ) -> EngineReport:
        """Build an engine; see :func:`samforge.backends.tensorrt.build.engine_from_onnx`."""
        return engine_from_onnx(
            self.flavour,
            onnx,
            engine,
            spec,
            settings,
            form=form,
            planned=planned,
            progress=progress,
        )

    def facts_from_artifact(self, path: Path) -> str | None:
        """The stamp in the file beside the engine, which holds the engine's hash as well.

        Raises:
            DamagedBundle: That file is not one of samforge.
        """
        stamp = read_stamp(path)
        return None if stamp is None else stamp.facts

    def session_from_artifact(
        self,
        path: Path,
        spec: PartSpec,
        *,
        threads: int | None = None,
        device: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Session:
        """Load an engine.

        Raises:
            MissingExtra: The library is not installed.
            DamagedBundle: The file is missing, truncated, changed, or another part's.
            ForeignBundle: It was built for another GPU or version, or there is no GPU.
            SettingError: ``threads`` is given, or an option, or ``device`` is the processor.
        """
        checked_options(self.name, options, {})
        require_kind(self.flavour.title, device, (CUDA,))
        if threads is not None:
            raise SettingError(
                f"{self.flavour.title} runs on the GPU: it has no processor threads to count. "
                "Leave the option out."
            )
        return EngineSession(self.flavour, path, spec, gpu_index=gpu_index(device))
