"""A program while it is being rewritten: its graph, its constants and what belongs to which."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputSpec,
    TensorArgument,
)

from samforge.transform.export import release
from samforge.transform.fuse.match import aten, result_of, same_tensor

CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class GraphEditor:
    """A copy of a program's graph that fusions edit; tensors are shared, never copied.

    Args:
        program: Stays as it is, but for ``consume``.
        consume: Free tensors of ``program`` as soon as nothing in the editor reads them.
    """

    def __init__(self, program: ExportedProgram, *, consume: bool = False) -> None:
        self._program = program
        self._consume = consume
        self.graph: fx.Graph = copy.deepcopy(program.graph)
        for old, new in zip(program.graph.nodes, self.graph.nodes, strict=True):
            new.name = old.name  # a copy renames ``input``, a word of Python's own
        specs = program.graph_signature.input_specs
        self._specs: dict[fx.Node, InputSpec] = dict(
            zip(self.graph.find_nodes(op="placeholder"), specs, strict=True)
        )
        self._tensors: dict[fx.Node, Tensor] = {
            node: _stored(program, spec)
            for node, spec in self._specs.items()
            if spec.kind in CONSTANTS
        }
        self._fake_mode = _fake_mode(self.graph)
        # What each value was computed from: where nothing changed nothing is computed again.
        self._seen = {node: _sources(node) for node in self.graph.nodes}

    @property
    def obstacle(self) -> str | None:
        """Why nothing may be rewritten, or None.

        What is changed in place has two values under one name, and rules would take one for the
        other; sub-graphs would have to be rewritten with everything around them.
        """
        mutating = {str(n.target) for n in self.graph.nodes if _mutates(n)}
        if mutating:
            return f"tensors are changed in place ({', '.join(sorted(mutating))})"
        if self.graph.find_nodes(op="get_attr"):
            return "there are graphs inside the graph"
        return None

    @property
    def nbytes(self) -> int:
        """What all parameters, buffers and constants take."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    @property
    def output(self) -> fx.Node:
        """The node that returns the results."""
        return self.graph.output_node()

    def calls(self, *targets: Callable[..., Any]) -> list[fx.Node]:
        """Calls of any of the operators, in the graph's order."""
        wanted = set(targets)
        return [n for n in self.graph.nodes if n.op == "call_function" and n.target in wanted]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every parameter, buffer and constant by its name in the state dict."""
        return {self.name(node): tensor for node, tensor in self._tensors.items()}

    def tensor(self, node: object) -> Tensor | None:
        """The tensor behind a parameter, buffer or constant; None for anything else."""
        return self._tensors.get(node) if isinstance(node, fx.Node) else None

    def name(self, node: fx.Node) -> str:
        """Name of a constant in the state dict: ``layers.0.attention.q_proj.weight``."""
        return str(self._specs[node].target)

    def constant(self, name: str, tensor: Tensor, *, like: fx.Node | None = None) -> fx.Node:
        """Add a tensor to the program.

        Args:
            name: In the state dict; gets a number when it is taken.
            tensor: Its values.
            like: The constant it replaces: same kind, same place in the signature. None makes it a
                buffer outside the state dict, as tables are.
        """
        taken = {spec.target for spec in self._specs.values()}
        name = next(n for n in _numbered(name) if n not in taken)
        kind, persistent, before = InputKind.BUFFER, cast("bool | None", False), self._after_state()
        if like is not None:
            kind, persistent = self._specs[like].kind, self._specs[like].persistent
            before = like
        if kind is InputKind.PARAMETER:
            tensor = nn.Parameter(tensor, requires_grad=False)
        prefix = {InputKind.PARAMETER: "p_", InputKind.BUFFER: "b_"}.get(kind, "c_")
        with self.graph.inserting_before(before):
            node = self.graph.placeholder(prefix + name.replace(".", "_"))
        node.target = node.name
        with self._fake_mode:
            node.meta["val"] = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )
        self._specs[node] = InputSpec(kind, TensorArgument(node.name), name, persistent)
        self._tensors[node] = tensor
        self._seen[node] = _sources(node)
        return node

    def set_tensor(self, node: fx.Node, tensor: Tensor) -> None:
        """Give a constant other values of the same shape; its only reader must expect them."""
        old = self._tensors[node]
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        self._tensors[node] = tensor
        self._forget(old)

    def equal_constant(self, tensor: Tensor) -> fx.Node | None:
        """A buffer outside the state dict with the same values, if there is one."""
        for node, other in self._tensors.items():
            kind, persistent = self._specs[node].kind, self._specs[node].persistent
            alike = (other.dtype, other.device) == (tensor.dtype, tensor.device)
            table = kind is InputKind.BUFFER and not persistent
            if table and alike and torch.equal(other, tensor):
                return node
        return None

    def call(
        self,
        target: Callable[..., Any],
        *args: Any,
        like: fx.Node,
        before: fx.Node | None = None,
        **kwargs: Any,
    ) -> fx.Node:
        """Add a call.

        Args:
            target: An operator.
            args: Its arguments, nodes among them.
            like: Gives the module stack by which later steps name layers.
            before: Where it goes; ``like`` unless given.
            kwargs: Its keyword arguments.
        """
        before = before or like
        while before.op == "placeholder":
            before = before.next
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs)
        kept = ("nn_module_stack", "torch_fn")
        node.meta = {key: like.meta[key] for key in kept if key in like.meta}
        self._compute(node)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every reader of ``old`` read ``new``."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def refresh(self, node: fx.Node) -> None:
        """Bring a node's recorded value up to date after its inputs changed."""
        self._compute(node)

    def sweep(self) -> None:
        """Drop what nobody reads, and bring the recorded values up to date."""
        self.graph.eliminate_dead_code()
        for node in [n for n in self._specs if not n.users and self._is_constant(n)]:
            tensor = self._tensors.pop(node)
            del self._specs[node]
            self.graph.erase_node(node)
            self._forget(tensor)
        for node in self.graph.nodes:
            if not _identical(self._seen.get(node, ()), _sources(node)):
                self._compute(node)

    def program(self) -> ExportedProgram:
        """The program that the editor has become."""
        self.sweep()
        self.graph.lint()
        old = self._program
        module = fx.GraphModule(old.graph_module, self.graph)
        state = dict[str, Any]()
        constants = {
            name: value for name, value in old.constants.items() if not isinstance(value, Tensor)
        }
        specs = [self._specs[node] for node in self.graph.find_nodes(op="placeholder")]
        for node, tensor in self._tensors.items():
            spec = self._specs[node]
            in_state = spec.kind is InputKind.PARAMETER or spec.persistent
            (state if in_state else constants)[str(spec.target)] = tensor
        return ExportedProgram(
            root=module,
            graph=module.graph,
            graph_signature=ExportGraphSignature(specs, self._output_specs()),
            state_dict=state,
            range_constraints=copy.deepcopy(old.range_constraints),
            module_call_graph=copy.deepcopy(old.module_call_graph),
            example_inputs=old.example_inputs,
            constants=constants,
            verifiers=old.verifiers,
        )

    def _output_specs(self) -> list[OutputSpec]:
        """The program's outputs under the names they had."""
        results = cast("Sequence[fx.Node]", self.output.args[0])
        taken = {node.name for node in self.graph.nodes}
        specs = []
        for spec, node in zip(self._program.graph_signature.output_specs, results, strict=True):
            if not isinstance(spec.arg, TensorArgument):
                specs.append(spec)
                continue
            if node.op == "call_function" and spec.arg.name not in taken:
                node.name = spec.arg.name
                taken.add(node.name)
            specs.append(OutputSpec(spec.kind, TensorArgument(node.name), spec.target))
        return specs

    def _is_constant(self, node: fx.Node) -> bool:
        return self._specs[node].kind in CONSTANTS

    def _after_state(self) -> fx.Node:
        """The first placeholder behind parameters and buffers."""
        state = (InputKind.PARAMETER, InputKind.BUFFER)
        node: fx.Node
        for node in self.graph.nodes:
            if node not in self._specs or self._specs[node].kind not in state:
                break
        return node

    def _forget(self, tensor: Tensor) -> None:
        """Free a tensor that the editor no longer reads, if the program may be used up."""
        place = tensor.untyped_storage().data_ptr()
        shared = any(t.untyped_storage().data_ptr() == place for t in self._tensors.values())
        if self._consume and not shared:
            release([tensor])

    def _no_guards(self) -> AbstractContextManager[None]:
        """Keep what shapes are asked here (is this axis 1?) from becoming a rule for inputs."""
        environment = self._fake_mode.shape_env
        return nullcontext() if environment is None else environment.suppress_guards()

    def _compute(self, node: fx.Node) -> None:
        """Record the value (shape, strides, type) of a node, and what it was computed from."""
        if node.op == "call_function":
            if node.target is aten.view.default and node in self._seen:
                # What it views may lie in memory otherwise now; a reshape copies where it has to.
                node.target = aten.reshape.default
            # torch 2.11 computes composite operators on symbolic sizes only through this door.
            with self._fake_mode, torch.no_grad(), enable_python_dispatcher():
                value = result_of(node)
            if not same_tensor(value, node.meta.get("val")):
                node.meta["val"] = value
        self._seen[node] = _sources(node)


def _stored(program: ExportedProgram, spec: InputSpec) -> Tensor:
    holders: tuple[Mapping[str, Any], ...] = (program.state_dict, program.constants)
    name = str(spec.target)
    return cast(Tensor, next(holder[name] for holder in holders if name in holder))


def _fake_mode(graph: fx.Graph) -> FakeTensorMode:
    for node in graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            return cast(FakeTensorMode, mode)
    return FakeTensorMode()


def _sources(node: fx.Node) -> tuple[object, ...]:
    """What a node's value follows from: the operator, and the values it reads."""
    return (node.target, *(source.meta.get("val") for source in node.all_input_nodes))


def _identical(first: tuple[object, ...], second: tuple[object, ...]) -> bool:
    """Whether two tuples hold the same objects; fake tensors cannot be compared otherwise."""
    same_length = len(first) == len(second)
    return same_length and all(one is other for one, other in zip(first, second, strict=True))


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    # Detaching in place changes no value.
    return schema is not None and schema.is_mutable and node.target is not aten.detach_.default


def _numbered(name: str) -> Any:
    """The name, then the name with 1, 2, … behind its last word."""
    yield name
    parent, _, leaf = name.rpartition(".")
    for number in range(1, 10_000):
        yield f"{parent}_{number}.{leaf}" if parent else f"{leaf}_{number}"
