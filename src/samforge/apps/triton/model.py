"""A bundle as a model of Triton's Python backend: its tensors in, a service asked, tensors out.

The calls are those of https://github.com/triton-inference-server/python_backend, whose module
``triton_python_backend_utils`` is there only inside tritonserver: it comes as an argument.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any, Self

import numpy as np

from samforge.core.closing import Closing
from samforge.core.detections import Detections
from samforge.core.errors import (
    BundleError,
    DeadlineExceeded,
    InputError,
    Overloaded,
    SamforgeError,
    SettingError,
)
from samforge.core.native import error_of_item
from samforge.formats import (
    TENSORS_IN,
    TENSORS_OUT,
    arrays_from_detections,
    picture_from_arrays,
    prompts_from_arrays,
)
from samforge.serving import Ask, Picture, Served, Service, Settings, Ticket

_LOG = logging.getLogger("samforge.triton")
_OLD_NAME = "numpy.core.multiarray"
_CLIENT = "triton"
_LOOK_SECONDS = 0.05
"""How often it is seen whether a client has cancelled."""


class TritonBundle(Closing):
    """One instance of a model: a bundle that has held its proof on this machine."""

    def __init__(self, service: Service, utils: Any) -> None:
        """Answer with a service that is ready.

        Args:
            service: Of one bundle.
            utils: ``triton_python_backend_utils``.
        """
        self._service, self._utils = service, utils

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, str], utils: Any) -> Self:
        """Verify and load what an instance is to run.

        Args:
            arguments: What ``initialize`` gets.
            utils: ``triton_python_backend_utils``.

        Raises:
            BundleError: The bundle cannot be opened, is another than was exported, or does not
                hold its proof here: Triton keeps the model unready, and shows why.
            SettingError: Triton's backend and this numpy do not understand each other.
        """
        _require_readable(utils)
        service = Service(Settings(bundles=(served_from_arguments(arguments),)))
        service.start()
        if not service.wait():
            error = service.model().proof.error
            service.close()
            raise BundleError(f"The bundle is not served: {error}") from error
        return cls(service, utils)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests; what goes wrong with one is its own answer."""
        asked = [(request, self._asked(request)) for request in requests]
        return [self._answered(request, ticket) for request, ticket in asked]

    def close(self) -> None:
        """Free the parts."""
        self._service.close()

    def _asked(self, request: Any) -> Ticket | SamforgeError:
        """Accept a request before any is waited for: questions of one picture go together."""
        try:
            arrays = {}
            for form in TENSORS_IN:
                tensor = self._utils.get_input_tensor_by_name(request, form.name)
                if tensor is not None:
                    arrays[form.name] = tensor.as_numpy()
            microseconds = request.timeout()
            return self._service.segment(
                self._service.model(),
                Picture.of(picture_from_arrays(arrays)),
                Ask(**prompts_from_arrays(arrays)),
                client=_CLIENT,
                seconds=microseconds / 1e6 if microseconds else None,
            )
        except SamforgeError as error:
            return error

    def _answered(self, request: Any, ticket: Ticket | SamforgeError) -> Any:
        response = self._utils.InferenceResponse
        if isinstance(ticket, SamforgeError):
            return response(output_tensors=[], error=self._error(ticket))
        try:
            found = _waited(request, ticket)
        except Exception as error:  # noqa: BLE001  # raised, it would fail the others of the call
            if not isinstance(error, SamforgeError):
                _LOG.exception("a request failed")
            return response(output_tensors=[], error=self._error(error_of_item(error)))
        if found is None:
            code = self._utils.TritonError.CANCELLED
            return response(
                output_tensors=[],
                error=self._utils.TritonError("The client cancelled the request.", code),
            )
        arrays = arrays_from_detections(found)
        wanted = set(request.requested_output_names())
        return response(
            output_tensors=[
                self._utils.Tensor(form.name, arrays[form.name])
                for form in TENSORS_OUT
                if form.name in wanted
            ]
        )

    def _error(self, error: SamforgeError) -> Any:
        kinds = self._utils.TritonError
        code = kinds.INTERNAL
        if isinstance(error, InputError):
            code = kinds.INVALID_ARG
        elif isinstance(error, Overloaded | DeadlineExceeded):
            code = kinds.UNAVAILABLE
        return kinds(str(error), code)


def _require_readable(utils: Any) -> None:
    """Make sure that tensors will arrive as they are sent.

    Backends built with pybind11 before 2.12 read arrays of numpy 2 with strides of zero, and end at
    the first text (triton-inference-server/python_backend, pull request 384). They ask numpy for
    its C functions by the name that they had before numpy 2, when the first array is wrapped.

    Raises:
        SettingError: They will not.
    """
    known = _OLD_NAME in sys.modules
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        utils.Tensor("sent", np.zeros(1, np.int32))
    if not known and _OLD_NAME in sys.modules and int(np.__version__.split(".")[0]) >= 2:
        raise SettingError(
            f"This Triton's Python backend was built for numpy 1 and garbles tensors of numpy "
            f"{np.__version__}, which samforge needs. Take a release of Triton whose backend knows "
            "numpy 2: docs/many-machines.md."
        )


def served_from_arguments(arguments: Mapping[str, str]) -> Served:
    """What an instance is to run, as its model's ``config.pbtxt`` and Triton say."""
    config = json.loads(arguments["model_config"])
    given = {key: value["string_value"] for key, value in config["parameters"].items()}
    folder = Path(arguments["model_repository"], arguments["model_version"])
    on_gpu = arguments["model_instance_kind"] == "GPU"
    threads = given.get("threads")
    return Served(
        name=arguments["model_name"],
        path=folder / given["bundle"],  # absolute where the repository holds no copy
        devices=(f"cuda:{arguments['model_instance_device_id']}" if on_gpu else "cpu",),
        threads=None if threads is None else int(threads),
        digests=(given["digest"],),
    )


def _waited(request: Any, ticket: Ticket) -> Detections | None:
    """The answer; None where the client has cancelled the request."""
    while not wait([ticket.future], _LOOK_SECONDS).done:
        if request.is_cancelled():
            ticket.future.cancel()
            return None
        ticket.is_live()  # one that is late is told so
    found: Detections = ticket.future.result()
    return found
