"""A bundle as a model of a Triton model repository: ``samforge export-triton``.

The layout and the keys are those of Triton's documentation, ``user_guide/model_repository.md`` and
``user_guide/model_configuration.md`` of https://github.com/triton-inference-server/server, and of
its Python backend. The model speaks the tensors that ``samforge serve`` speaks at ``/v2``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from samforge.core.bundle import Bundle, open_bundle, require_digest
from samforge.core.devices import AUTO, CPU, CUDA, checked_device, gpu_index, is_gpu, require_kind
from samforge.core.errors import ForeignBundle, SettingError
from samforge.core.own_folder import require_outside_bundles
from samforge.core.session import checked_threads
from samforge.core.targets import target_from_name
from samforge.core.version import __version__
from samforge.workflows.triton_config import TritonConfig
from samforge.workflows.triton_folder import BUNDLE, VERSION, Contents, check_replaceable, publish

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MODEL = '''\
"""{name}: written by samforge {version} (samforge export-triton); samforge does the work."""

import triton_python_backend_utils as pb_utils
from samforge.apps.triton import TritonBundle


class TritonPythonModel:
    """What Triton's Python backend loads."""

    def initialize(self, args):
        """Verify the bundle on this machine and load it; an error keeps the model unready."""
        self.bundle = TritonBundle.from_arguments(args, pb_utils)

    def execute(self, requests):
        """Answer requests."""
        return self.bundle.execute(requests)

    def finalize(self):
        """Free the parts."""
        self.bundle.close()
'''


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonOptions:
    """How Triton runs a bundle.

    Raises:
        SettingError: A value is outside what is allowed.
    """

    name: str | None = None
    """Of the model; None for that of the bundle's folder."""
    link: bool = False
    """Whether the repository names the bundle where it is, and holds no copy."""
    devices: tuple[str, ...] = (AUTO,)
    """``auto`` (what the bundle was built for), ``cpu``, ``cuda`` (every GPU that Triton has), or
    GPUs by number."""
    instances: int = 1
    """Processes on each device, each with the parts in memory."""
    threads: int | None = None
    """Processor threads of each session; None for the runtime's own choice."""
    response_cache: bool = False
    """Whether Triton may answer the same question from its cache, where the server has one."""

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise SettingError(
                f"The model's name is {self.name!r:.80}. Give letters, digits, _, . and -, at most "
                "64, and a letter or digit first."
            )
        if isinstance(self.instances, bool) or not 1 <= self.instances <= 64:
            raise SettingError(f"instances is {self.instances!r:.40}. Give 1 to 64.")
        checked_threads(self.threads)
        kinds = {is_gpu(checked_device(one)) for one in self.devices}
        if len(kinds) != 1 or (len(self.devices) > 1 and not all(map(_numbered, self.devices))):
            raise SettingError(
                f"devices are {', '.join(self.devices) or 'none'}. Give auto, cpu, cuda, or GPUs "
                "by number: cuda:0, cuda:1."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonExport:
    """What was written."""

    repository: Path
    """What tritonserver gets as --model-repository."""
    model: Path
    """Folder of the model."""
    name: str
    """Of the model."""
    digest: str
    """Of the bundle; the model refuses to load any other."""
    bundle: Path
    """The bundle that it loads."""
    files: tuple[Path, ...]
    """What was written, the bundle's files among them."""
    kind: str
    """Triton's word for where it runs: ``KIND_CPU`` or ``KIND_GPU``."""


def export_triton(
    bundle: str | Path | Bundle,
    out: str | Path,
    options: TritonOptions | None = None,
    *,
    digest: str | None = None,
) -> TritonExport:
    """Write a bundle as a model of a Triton model repository.

    The model runs in Triton's Python backend, by the samforge of that Python. It is ready once the
    bundle has held its proof on that machine, and finds what the library finds.

    Args:
        bundle: Its folder, or an opened bundle.
        out: The repository: a new folder, or one with other models, which stay as they are.
        options: How Triton runs it.
        digest: Refuse any other bundle.

    Returns:
        What was written. An earlier export of this name is replaced in one step.

    Raises:
        BundleError: It is no bundle, damaged, or another than the one of the digest.
        OutputError: Files of somebody else are in the way, or the folder cannot be written.
        SettingError: A name or device is outside what is allowed.
    """
    options = options or TritonOptions()
    opened = _opened(bundle, digest)
    name = options.name or opened.root.name
    if not _NAME.fullmatch(name):
        raise SettingError(f"{name!r:.80} cannot name a model. Give another: --name.")
    kind, gpus = _placed(opened, options)
    repository = Path(out).resolve()
    require_outside_bundles(repository, "--out")
    model = repository / name
    check_replaceable(model)
    config = TritonConfig(
        name=name,
        digest=opened.digest,
        kind=kind,
        gpus=gpus,
        instances=options.instances,
        response_cache=options.response_cache,
        parameters={
            "bundle": str(opened.root) if options.link else BUNDLE,
            "digest": opened.digest,
            "samforge": __version__,
            **({} if options.threads is None else {"threads": str(options.threads)}),
        },
    )
    contents = Contents(
        bundle=opened,
        copied=not options.link,
        config=config.text(),
        model=_MODEL.format(name=name, version=__version__),
    )
    files = publish(contents, model)
    return TritonExport(
        repository=repository,
        model=model,
        name=name,
        digest=opened.digest,
        bundle=opened.root if options.link else model / VERSION / BUNDLE,
        files=files,
        kind=kind,
    )


def _opened(bundle: str | Path | Bundle, digest: str | None) -> Bundle:
    if not isinstance(bundle, Bundle):
        opened = open_bundle(bundle, digest=digest)
    else:
        require_digest(bundle, digest)
        opened = bundle
    if opened.manifest.text is None:
        raise ForeignBundle(
            f"{opened.root} takes no phrases: it holds {opened.manifest.family}. Export a bundle "
            "that segments."
        )
    return opened


def _placed(bundle: Bundle, options: TritonOptions) -> tuple[str, tuple[int, ...]]:
    """Where instances run, in Triton's words, and on which GPUs; none for all."""
    target = target_from_name(bundle.manifest.target)
    devices = options.devices
    if devices == (AUTO,):
        return ("KIND_GPU" if target.devices[0] == CUDA else "KIND_CPU"), ()
    for one in devices:
        require_kind(target.name, checked_device(one), target.devices)
    if devices == (CPU,):
        return "KIND_CPU", ()
    return "KIND_GPU", tuple(gpu_index(one) for one in devices if _numbered(one))


def _numbered(device: str) -> bool:
    return device.startswith(f"{CUDA}:")
