"""Rows from samples: medians, the best peer, the ratio's sense, and what failures do."""

from __future__ import annotations

from slipstream.bench.peers.results import Comparison, Results, compare


def results() -> Results:
    found = Results()
    numbers = {
        ("decode-1", "slipstream-exact"): [30.0, 10.0, 20.0],
        ("decode-1", "slipstream-fast"): [40.0],
        ("decode-1", "openvino"): [5.0, 7.0, 90.0],
        ("decode-1", "vllm"): [8.0],
        ("ttft-128", "slipstream-exact"): [50.0],
        ("ttft-128", "openvino"): [100.0],
        ("ttft-128", "vllm"): [75.0],
        ("serve-32", "slipstream-http-exact"): [300.0],
        ("serve-32", "openvino"): [200.0],
        ("bandwidth", "slipstream-exact"): [65.0],
    }
    for (workload, name), samples in numbers.items():
        for sample in samples:
            found.add(("smollm2", workload, name), sample)
    return found


def row(found: Results, workload: str, precision: str = "exact") -> Comparison:
    (one,) = [each for each in compare(found) if (each.workload, each.precision) == (workload, precision)]
    return one


def test_a_rate_is_compared_with_the_highest_median() -> None:
    assert row(results(), "decode-1").to_json() == {
        "model": "smollm2",
        "precision": "exact",
        "workload": "decode-1",
        "metric": "tok/s",
        "slipstream": 20.0,
        "openvino": 7.0,
        "vllm": 8.0,
        "best_peer": "vllm",
        "ratio": 2.5,
    }
    assert row(results(), "decode-1", "fast").ratio == 5.0


def test_a_time_is_compared_with_the_lowest_and_better_is_still_over_one() -> None:
    assert (row(results(), "ttft-128").best_peer, row(results(), "ttft-128").ratio) == ("vllm", 1.5)


def test_a_peer_in_process_is_compared_with_the_server() -> None:
    assert (row(results(), "serve-32").slipstream, row(results(), "serve-32").ratio) == (300.0, 1.5)


def test_the_share_of_the_bandwidth_has_no_peer() -> None:
    assert row(results(), "bandwidth").to_json() == {
        "model": "smollm2",
        "precision": "exact",
        "workload": "bandwidth",
        "metric": "%",
        "slipstream": 65.0,
        "best_peer": None,
        "ratio": None,
    }


def test_a_peer_that_failed_once_has_no_number_and_is_not_the_best() -> None:
    found = results()
    found.fail(("smollm2", "decode-1", "vllm"), "it ended")
    failed = row(found, "decode-1")
    assert (failed.peers["vllm"], failed.best_peer) == (None, "openvino")
    assert failed.errors == {"vllm": "it ended"}
    assert failed.to_json()["errors"] == {"vllm": "it ended"}


def test_a_peer_that_never_began_is_still_in_its_rows() -> None:
    found = results()
    found.fail(("smollm2", "decode-1", "transformers"), "pip cannot install it")
    assert row(found, "decode-1").to_json()["transformers"] is None


def test_without_our_own_number_there_is_no_ratio() -> None:
    found = results()
    found.fail(("smollm2", "decode-1", "slipstream-exact"), "no memory")
    assert (row(found, "decode-1").slipstream, row(found, "decode-1").ratio) == (None, None)
    assert row(found, "decode-1").best_peer == "vllm"


def test_rows_of_both_precisions_follow_one_another() -> None:
    order = [(each.workload, each.precision) for each in compare(results())]
    assert order == [
        ("decode-1", "exact"),
        ("decode-1", "fast"),
        ("bandwidth", "exact"),
        ("bandwidth", "fast"),
        ("ttft-128", "exact"),
        ("ttft-128", "fast"),
        ("serve-32", "exact"),
    ]
