"""`slipstream env`."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import jax
import pytest

from slipstream.cli.env import EnvOptions, env
from slipstream.hardware.host import read_host
from slipstream.kernels.native import library


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    env(options=EnvOptions(json=True))
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        "slipstream", "python", "executable", "system", "host", "devices", "device_error", "kernels", "versions",
    }  # fmt: skip
    assert found["python"] == platform.python_version()
    assert found["versions"]["jax"] == version("jax")
    assert found["versions"]["jaxlib"] == version("jaxlib")
    assert len(found["devices"]) == len(jax.devices())
    assert found["devices"][0]["platform"] == jax.devices()[0].platform
    assert found["device_error"] is None
    assert found["host"]["cpus"] == read_host().cpus
    assert found["host"]["memory_total"] == read_host().memory_total


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    env()
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if not line.startswith(" "))
    assert rows["slipstream"] == version("slipstream")
    assert rows["jax"] == version("jax")
    assert "in the process's mask" in rows["cpus"]
    assert rows["kernels"] == library.description()


def test_kernels_that_were_not_built_come_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "library", lambda: None)
    env()
    assert "kernels      none: the native CPU kernels were not built" in capsys.readouterr().out


def test_no_device_is_said_not_raised(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> list[object]:
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(jax, "devices", fail)
    env()
    assert "device       none: RuntimeError: Unable to initialize backend 'tpu'" in capsys.readouterr().out
