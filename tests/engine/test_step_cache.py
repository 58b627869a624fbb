"""Compiled steps on disk: found for the same facts only, run the same, donate the same, and never needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.engine import origin
from slipstream.engine.step_cache import StepCache
from slipstream.hardware.store import Store

ARGUMENTS = (jax.ShapeDtypeStruct((64, 1024), jnp.float32), {"b": jax.ShapeDtypeStruct((1024,), jnp.float32)})


def step(state: jax.Array, more: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return state.at[3].set(jnp.sin(more["b"])), jnp.sum(state * more["b"])


class Compiles:
    """A cache, and how often the function had to be made."""

    def __init__(self, folder: Path, **facts: Any) -> None:
        self.count = 0
        self.cache = StepCache(Store(folder, 2**30), facts, jax.devices()[:1])

    def get(self, arguments: tuple[Any, ...] = ARGUMENTS, **facts: Any) -> Any:
        def function() -> Any:
            self.count += 1
            return jax.jit(step, donate_argnums=0)

        return self.cache.get("step", function, arguments, **facts)


def values() -> tuple[jax.Array, dict[str, jax.Array]]:
    random = np.random.default_rng(0)
    state, b = (random.normal(size=size).astype(np.float32) for size in ((64, 1024), 1024))
    return jnp.array(state), {"b": jnp.array(b)}


def test_a_kept_step_gives_the_same_bits_in_the_same_memory(tmp_path: Path) -> None:
    first = Compiles(tmp_path).get()
    again = Compiles(tmp_path)
    kept = again.get()
    assert again.count == 0
    assert kept.temporaries == first.temporaries
    expected = first.call(*values())
    state, more = values()
    place = state.unsafe_buffer_pointer()
    found = kept.call(state, more)
    assert state.is_deleted() and found[0].unsafe_buffer_pointer() == place, "donated, so updated in place"
    for one, two in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_fact_counts(tmp_path: Path) -> None:
    Compiles(tmp_path, code="a").get(shape=[1, 2])
    other_type = (jax.ShapeDtypeStruct((64, 1024), jnp.float32), {"b": jax.ShapeDtypeStruct((1024,), jnp.bfloat16)})
    other_shape = (jax.ShapeDtypeStruct((65, 1024), jnp.float32), ARGUMENTS[1])
    cases: list[tuple[dict[str, Any], tuple[Any, ...], dict[str, Any]]] = [
        ({"code": "b"}, ARGUMENTS, {"shape": [1, 2]}),
        ({"code": "a"}, ARGUMENTS, {"shape": [1, 3]}),
        ({"code": "a"}, ARGUMENTS, {}),
        ({"code": "a"}, other_type, {"shape": [1, 2]}),
        ({"code": "a"}, other_shape, {"shape": [1, 2]}),
        ({"code": "a"}, ARGUMENTS, {"shape": [1, 2]}),
    ]
    for all_facts, arguments, own in cases:
        asked = Compiles(tmp_path, **all_facts)
        asked.get(arguments, **own)
        assert asked.count == (
            0 if own == {"shape": [1, 2]} and arguments is ARGUMENTS and all_facts == {"code": "a"} else 1
        )


@pytest.mark.parametrize("damage", ["executable", "trees", "cut off"])
def test_a_damaged_step_is_compiled_again_and_mended(tmp_path: Path, damage: str) -> None:
    Compiles(tmp_path).get()
    [path] = tmp_path.glob("*.kept")
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    else:  # whole by its checksum, and still nothing that can be loaded
        store = Store(tmp_path, 2**30)
        entry = store.read(path.stem)
        assert entry is not None
        parts = {name: bytes(part) for name, part in entry.parts.items()} | {damage: b"nonsense"}
        store.write(path.stem, dict(entry.facts), parts)
    asked = Compiles(tmp_path)
    asked.get().call(*values())
    assert asked.count == 1
    asked.get()
    assert asked.count == 1


def test_nothing_is_kept_where_it_may_have_come_out_of_xlas_cache(tmp_path: Path) -> None:
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    try:
        Compiles(tmp_path / "steps").get().call(*values())
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert not list(tmp_path.glob("steps/*"))
    Compiles(tmp_path / "steps").get()
    assert len(list(tmp_path.glob("steps/*"))) == 1


def test_without_a_store_everything_is_compiled() -> None:
    made = []
    cache = StepCache(None, {}, jax.devices()[:1])
    for _ in range(2):
        cache.get("step", lambda: made.append(1) or jax.jit(step), ARGUMENTS)
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_is_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked = Compiles(tmp_path / "file" / "steps")
    asked.get().call(*values())
    asked.get()
    assert asked.count == 2


def test_the_facts_name_code_machine_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    device = jax.devices()[0]
    facts = origin.compile_facts([device])
    assert facts == origin.compile_facts([device])
    assert facts["versions"] == {"jax": jax.__version__, "jaxlib": jax.lib.__version__}
    assert facts["settings"]["jax_enable_x64"] == "False"
    for variable in ("XLA_FLAGS", origin.library.XLA_THREADS_VARIABLE):
        with monkeypatch.context() as changed:
            changed.setenv(variable, "7")
            assert origin.compile_facts([device]) != facts


def test_the_code_hash_follows_each_source_and_packing_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("kernels", "models"):
        (tmp_path / package).mkdir()
    source, library = tmp_path / "kernels" / "a.py", tmp_path / "lib.so"
    monkeypatch.setattr(origin, "files", lambda _: tmp_path)
    monkeypatch.setattr(origin.library, "path", lambda: library)

    def now() -> str:
        origin.code.cache_clear()
        return origin.code()

    hashes = [now()]
    for change in (
        lambda: source.write_text("1"),
        lambda: source.write_text("2"),
        lambda: source.rename(tmp_path / "models" / "a.py"),
    ):
        change()
        hashes.append(now())
    assert len(set(hashes)) == len(hashes)
    library.write_bytes(b"built")
    built = origin.packing_facts()
    library.write_bytes(b"built again")
    assert origin.packing_facts() != built
    assert now() == hashes[-1]
    origin.code.cache_clear()
