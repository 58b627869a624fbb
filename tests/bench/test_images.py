"""`bench images` without its participants: what a step costs, what is reported, which settings are refused."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from slipstream.bench.ceilings import Ceilings
from slipstream.bench.images import run as bench
from slipstream.bench.images.drivers.workloads import weight, workload
from slipstream.bench.images.operations import counted, operations
from slipstream.bench.images.options import ImagesOptions
from slipstream.errors import ConfigError


def test_operations_of_products_convolutions_and_loops() -> None:
    def step(x: jax.Array, w: jax.Array, filters: jax.Array) -> jax.Array:
        x = jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0]
        return jax.lax.conv_general_dilated(
            x.reshape(1, 4, 5, 6), filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    jaxpr = jax.make_jaxpr(step)(jnp.zeros((20, 6)), jnp.zeros((6, 6)), jnp.zeros((3, 3, 6, 7)))
    assert counted(jaxpr.jaxpr) == 2 * (3 * 20 * 6 * 6 + 20 * 7 * 9 * 6)


def test_operations_of_stable_diffusion_xl() -> None:
    """A step at 512x512 with guidance; PyTorch's own counter gives 3.178 TFLOP for diffusers' model."""
    assert operations(workload("unet", 512, narrow=False)) == pytest.approx(3.178e12, rel=0.002)


def test_weights_depend_on_names_alone() -> None:
    one, other = weight("a.weight", (40, 30)), weight("b.weight", (40, 30))
    np.testing.assert_array_equal(one, weight("a.weight", (40, 30)))
    assert np.abs(one - other).max() > 0
    assert one.std() * 30**0.5 == pytest.approx(1, abs=0.1)
    assert weight("norm.weight", (500,)).mean() == pytest.approx(1, abs=0.02)
    assert weight("norm.bias", (500,)).mean() == pytest.approx(0, abs=0.02)


class Answers:
    """Stands in for the participants' processes."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = seconds
        self.asked: list[tuple[str, bool]] = []

    def __call__(self, name: str, settings: Mapping[str, Any], python: Path | str) -> dict[str, Any]:
        self.asked.append((name, settings["convert"]))
        if settings["convert"]:
            return {"load": 1.0, "first": 0.0, "seconds": [], "versions": {}}
        if name not in self.seconds:
            return {"error": "it ended with exit status 1"}
        output = np.linspace(-1, 1, 100, dtype=np.float32)
        np.save(settings["output"], output + (1e-3 if name == "exact" else 0))
        return {"load": 2.0, "first": 9.0, "seconds": [self.seconds[name]] * settings["steps"], "versions": {"x": "1"}}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    found = Answers({"exact": 2.0, "diffusers": 3.0, "openvino": 1.0})
    monkeypatch.setattr(bench, "_ask", found)
    monkeypatch.setattr(bench, "install", lambda name, said: Path("python"))
    monkeypatch.setattr(bench, "measure", lambda: Ceilings(1e9, 1e9, 1e12))
    return found


def test_report(answers: Answers, tmp_path: Path) -> None:
    path, said = tmp_path / "report.json", io.StringIO()
    options = ImagesOptions(workloads="unet", rounds=2, steps=2, narrow=True, size=64, json=path)
    console = Console(file=said, force_terminal=False)
    report = bench.run(options, console=console, progress=Console(file=io.StringIO()))
    assert json.loads(path.read_text())["workloads"] == report["workloads"]
    # Conversion first; then rounds in which one that failed no longer takes part.
    rounds = [("exact", False), ("diffusers", False), ("openvino", False)]
    assert answers.asked == [("openvino", True), rounds[0], ("fast", False), *rounds[1:], *rounds]
    unet = report["workloads"]["unet"]
    exact, fast, diffusers, _ = unet["participants"].values()
    assert exact["seconds"] == [2.0] * 4
    assert (exact["diffusers_over_it"], exact["openvino_over_it"]) == (1.5, 0.5)
    assert exact["share_of_peak"] == pytest.approx(unet["operations"] / 2 / 1e12)
    assert exact["difference"] == pytest.approx(1e-3, rel=1e-3)
    assert exact["psnr"] == pytest.approx(66.02, abs=0.01)
    assert diffusers["difference"] is None
    assert fast["median"] is None
    lines = said.getvalue().splitlines()
    assert lines[0].startswith("unet at 64x64, 0.0")
    assert lines[2].split("\t")[:2] == ["Slipstream f32", "2.000"]
    assert lines[3].split("\t")[:2] == ["Slipstream int8", "failed: it ended with exit status 1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 500}, "--size must be a multiple of 64, got 500"),
        ({"rounds": 0}, "--rounds must be at least 1, got 0"),
        ({"workloads": "unet,sd3"}, "--workloads takes unet, flux, with commas; got sd3"),
        ({"participants": ""}, "--participants takes exact, .* got none"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImagesOptions(**settings)
