"""How sessions are made for a provider, as far as that can be seen without its device."""

from __future__ import annotations

import pytest
from batchyard.export import runtime
from batchyard.transport.errors import InvalidRequest


def test_providers_have_short_names_and_those_that_are_not_here_are_refused() -> None:
    assert runtime.target("cpu") == runtime.target(runtime.CPU) == runtime.Target(runtime.CPU)
    with pytest.raises(InvalidRequest, match=r"no NoSuchProvider; it has .*CPUExecutionProvider"):
        runtime.target("NoSuchProvider")


def test_options_of_webgpu_are_entries_of_the_session_because_its_package_reads_no_others() -> None:
    where = runtime.Target(runtime.WEBGPU, {"powerPreference": "high-performance"})
    chosen = runtime.options(where)
    assert chosen.get_session_config_entry("ep.webgpuexecutionprovider.powerPreference") == "high-performance"


def test_directml_gets_neither_memory_patterns_nor_parallel_execution() -> None:
    import onnxruntime

    chosen = runtime.options(runtime.Target(runtime.DIRECTML))
    assert not chosen.enable_mem_pattern
    assert chosen.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert runtime.options(runtime.Target()).enable_mem_pattern


def test_a_reference_is_run_as_it_is_written() -> None:
    import onnxruntime

    level = onnxruntime.GraphOptimizationLevel
    assert runtime.options(runtime.AS_WRITTEN).graph_optimization_level == level.ORT_DISABLE_ALL
    assert runtime.options().graph_optimization_level == level.ORT_ENABLE_ALL
