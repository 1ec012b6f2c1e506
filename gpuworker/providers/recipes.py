"""A session recipe, and what the providers' recipes have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ROWS_MAX = 1024  # of a batch, by the protocol


@dataclass(frozen=True)
class Recipe:
    """How sessions are made for one provider, and what they are like.

    make_options: a new onnxruntime.SessionOptions for every session: what is overridden stays in it.
    providers: what InferenceSession takes; None where the options bring the devices themselves.
    reference: the CPU's recipe, whose answers a device's are compared with. None: this is it, and runs read
        and write the arenas' own memory.
    static_shapes: every batch size that is new costs much, so only some are run (the buckets).
    session_per_bucket: and each of them gets a session whose batch axis is fixed.
    rows_max: the largest bucket, unless the model's configuration names its own.
    run_ns_max: a bucket whose run would take longer is not used; 0: no limit.
    one_at_a_time: of all sessions of the process, one may be made or run at a time.
    """

    name: str
    make_options: Callable[[], Any]
    providers: list[Any] | None
    reference: Recipe | None = None
    static_shapes: bool = False
    session_per_bucket: bool = False
    rows_max: int = ROWS_MAX
    run_ns_max: int = 0
    one_at_a_time: bool = False

    @property
    def in_place(self) -> bool:
        """Whether a run may read and write the arenas' own memory."""
        return self.reference is None

    def session(self, model: str | bytes, fixed_axes: Mapping[str, int], profile_prefix: str = "") -> Any:
        """An InferenceSession of a file, or of its bytes.

        fixed_axes: sizes of free axes by name. profile_prefix: where the session shall write what its
        runs do, until its `end_profiling`. Raises whatever onnxruntime raises.
        """
        import onnxruntime

        options = self.make_options()
        for axis, size in fixed_axes.items():
            options.add_free_dimension_override_by_name(axis, size)
        if profile_prefix:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        # With its default fallback, a GPU session that can't start silently becomes one of the CPU.
        return onnxruntime.InferenceSession(model, options, providers=self.providers, enable_fallback=0)


def base_options() -> Any:
    """What every recipe begins with. Threads that spin while they wait steal the cores that broker and
    clients need: on 2 cores two workers with spinning pairs of threads run 74 inferences/s, with one
    thread each 120."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def device_options(whole: bool) -> Any:
    """`base_options` for a session on a GPU: the CPU only feeds it. Memory patterns are for shapes that
    the host plans for; DirectML refuses them."""
    options = base_options()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    if whole:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def and_cpu(provider: tuple[str, dict[str, str]], whole: bool) -> list[Any]:
    """The providers of a session: what the device can't run is for the CPU, unless `whole`; naming the
    CPU's then would be an error."""
    return [provider] if whole else [provider, "CPUExecutionProvider"]


def has(provider: str) -> bool:
    """Whether onnxruntime was built with that provider, by onnxruntime's name."""
    import onnxruntime

    return provider in onnxruntime.get_available_providers()


def listed(provider: str) -> int:
    """How many devices onnxruntime lists for one of its providers; 0 where it can't list any."""
    import onnxruntime

    try:
        return len([found for found in onnxruntime.get_ep_devices() if found.ep_name == provider])
    except (AttributeError, RuntimeError):  # before 1.22; or the platform's discovery fails
        return 0


def plugin_devices(plugin: Any) -> list[Any]:
    """The devices that a plugin of onnxruntime offers. plugin: the package that it comes in, imported."""
    import onnxruntime

    name = plugin.get_ep_name()

    def offered() -> list[Any]:
        return [found for found in onnxruntime.get_ep_devices() if found.ep_name == name]

    if not offered():  # it can be registered once in a process
        try:
            onnxruntime.register_execution_provider_library(f"batchyard.{name}", plugin.get_library_path())
        except Exception as error:  # onnxruntime's own types
            if "already registered" not in str(error):
                raise
    return offered()
