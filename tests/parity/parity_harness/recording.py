"""One recording: its tensors and numbers, and the account of which of them were compared.

Nothing may pass by not being looked at: a recorded tensor or number that no comparison used is a failure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FLOAT64_TOLERANCE = 1e-8
"""Bound for outputs of the float64 run; the recording's own tolerance where that is tighter."""

GRADIENT_RTOL = 1e-3
"""Relative bound for norms of gradients, and for their probes relative to the norm."""

GRADIENT_FLOOR = 1e-7
"""Norms below this share of the largest one are rounding noise and are compared with that share as the absolute bound."""

DESCRIPTIVE = {"format", "name", "family", "description", "sources", "config", "notes", "tensors", "environment"}
"""Entries of the JSON that hold nothing to compare."""
DESCRIPTIVE |= {"float32_vs_float64_max_abs"}


class Recording:
    """A pair ``<name>.safetensors`` and ``<name>.json``, read for a run in ``dtype`` on ``device``."""

    def __init__(self, path: Path, dtype: torch.dtype, device: str = "cpu") -> None:
        self.meta: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        self.tensors = load_file(path.with_suffix(".safetensors"), device=device)
        self.dtype = dtype
        self.config: dict[str, Any] = self.meta["config"]
        self.used: set[str] = set()
        self.leaves: dict[str, Tensor] = {}
        self.faults: list[str] = []
        self.compared = 0

    # ------------------------------------------------------------------------------------------------ what goes in

    def part(self, prefix: str) -> dict[str, Tensor]:
        """All tensors below ``prefix`` without it, floating ones in the dtype of the run; they count as used."""
        found = {name: value for name, value in self.tensors.items() if name.startswith(prefix)}
        self.used |= found.keys()
        return {name.removeprefix(prefix): self._cast(value) for name, value in found.items()}

    def state(self) -> dict[str, Tensor]:
        """The official state dict."""
        return self.part("state.")

    def input(self, name: str) -> Tensor:
        """One input; it counts as used. Where the gradient of the loss for it is recorded, it asks for one."""
        self.used.add(f"input.{name}")
        value = self._cast(self.tensors[f"input.{name}"])
        if f"grad.input.{name}" in self.tensors:
            self.leaves[name] = value.requires_grad_()
        return value

    def names(self, prefix: str) -> list[str]:
        """Names of the recorded tensors below ``prefix``, without it."""
        return [name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix)]

    def cases(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Tensor]]]:
        """Name, options and inputs (which may be differentiated) of every case of an operator's recording."""
        for case, options in self.config["cases"].items():
            inputs = self.part(f"input.{case}.")
            yield case, options, {name: value.requires_grad_(value.is_floating_point()) for name, value in inputs.items()}

    def _cast(self, value: Tensor) -> Tensor:
        # What is stored in float64 (quantiles, epochs) stays so; not every float8 type converts to float64 directly.
        narrow = value.is_floating_point() and value.dtype != torch.float64
        return value.float().to(self.dtype) if narrow else value

    # --------------------------------------------------------------------------------------------- what comes out

    def check(self, name: str, value: Tensor, whole: Tensor | None = None) -> None:
        """Compare with the recorded tensor ``name`` (``output.loss``), and with ``output64.loss`` in a float64 run;
        ``whole`` is the value there, where it holds more."""
        if name in self.tensors:
            self._compare(name, value)
        precise = re.sub(r"^output\.", "output64.", name)
        if precise != name and precise in self.tensors and self.dtype == torch.float64:
            self._compare(precise, value if whole is None else whole)

    def check_each(self, prefix: str, pattern: str, value: Callable[..., Tensor]) -> None:
        """Compare every recorded tensor whose name below ``prefix`` matches ``pattern`` with ``value(*groups)``."""
        for name in self.names(prefix):
            if found := re.fullmatch(pattern, name):
                self.check(prefix + name, value(*found.groups()))

    def check_gradients(self, gradients: Mapping[str, Tensor], loss: str = "default") -> None:
        """Compare the gradients of parameters, by official name: the recorded ones, and norm and probe of all; and those of
        the inputs."""
        for name, leaf in self.leaves.items():
            self.check(f"grad.input.{name}", torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        for name in self.names("grad."):
            if not name.startswith("input."):
                if name in gradients:
                    self.check(f"grad.{name}", gradients[name])
                else:
                    self.faults.append(f"grad.{name}: our model has no such gradient")
        for kind in ("grad_norms", "grad_probes", "params_without_grad"):
            if loss in self.meta.get(kind, {}):
                self.used.add(f"{kind}.{loss}")
        norms: dict[str, float] = self.meta.get("grad_norms", {}).get(loss, {})
        probes: dict[str, float] = self.meta.get("grad_probes", {}).get(loss, {})
        without = set(self.meta.get("params_without_grad", {}).get(loss, ()))
        expected = (norms.keys() | probes.keys()) - without
        if gradients.keys() != expected:
            extra, missing = sorted(gradients.keys() - expected), sorted(expected - gradients.keys())
            self.faults.append(f"parameters with a gradient differ: we also have {extra}, we lack {missing}")
        floor = GRADIENT_FLOOR * max(norms.values(), default=0.0)
        for name in gradients.keys() & expected:
            flat = gradients[name].detach().double().flatten()
            norm, probe = float(flat.norm()), float(flat @ torch.arange(flat.numel(), dtype=torch.float64).cos())
            bound = GRADIENT_RTOL * norms.get(name, norm) + floor
            for kind, ours, theirs in (("norm", norm, norms.get(name)), ("probe", probe, probes.get(name))):
                if theirs is not None:
                    self.compared += 1
                    if not abs(ours - theirs) <= bound:
                        self.faults.append(f"gradient {kind} of {name}: {ours:.6g}, recorded {theirs:.6g}, bound {bound:.1g}")

    def check_true(self, what: str, holds: bool) -> None:
        """Note a fault unless ``holds``."""
        self.compared += 1
        if not holds:
            self.faults.append(what)

    def _compare(self, name: str, value: Tensor) -> None:
        self.used.add(name)
        self.compared += 1
        theirs, given = self.tensors[name], self.meta["tensors"].get(name, {})
        atol, rtol = given.get("atol", 0.0), given.get("rtol", 0.0)
        if name.startswith("output64."):
            atol, rtol = (min(given.get(k, FLOAT64_TOLERANCE), FLOAT64_TOLERANCE) for k in ("atol", "rtol"))
        ours = value.detach().to(theirs.dtype)
        if ours.shape != theirs.shape:
            self.faults.append(f"{name}: shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}")
        elif not theirs.is_floating_point():
            if not torch.equal(ours, theirs):
                self.faults.append(f"{name}: {int((ours != theirs).sum())} of {theirs.numel()} entries differ")
        elif not torch.allclose(ours, theirs, rtol=rtol, atol=atol):
            error = (ours.double() - theirs.double()).abs().nan_to_num(nan=torch.inf).max()
            self.faults.append(f"{name}: largest difference {float(error):.3g}, allowed {atol:.3g} + {rtol:.3g} * |recorded|")

    # ------------------------------------------------------------------------------------------------- the account

    def unused(self) -> list[str]:
        """Recorded tensors and numbers that no comparison of this run used."""
        exact = self.dtype == torch.float64
        tensors = {name for name in self.tensors if exact or not name.startswith("output64.")}
        numbers = set()
        for key in self.meta.keys() - DESCRIPTIVE:
            value = self.meta[key]
            numbers |= {f"{key}.{part}" for part in value} if isinstance(value, dict) else {key}
        return sorted((tensors | numbers) - self.used)

    def conclude(self) -> None:
        """Fail if any comparison did, or if anything recorded was not compared."""
        problems = self.faults + [f"{name}: recorded, but compared with nothing" for name in self.unused()]
        lost = sorted(self.meta.get("tensors", {}).keys() - self.tensors.keys())
        problems += [f"{name}: described in the JSON, but not among the tensors" for name in lost]
        if not self.compared:
            problems.append("nothing was compared")
        assert not problems, f"{self.meta['name']} ({self.dtype}):\n  " + "\n  ".join(problems)
