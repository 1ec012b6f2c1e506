"""What is asked and ordered over gRPC besides inference: messages in, plain values of the answer out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from . import control, described, settings
from .errors import invalid
from .regions import NO_CUDA
from .rooms import Rooms
from .yard import why_not_served


def methods(rooms: Rooms) -> dict[str, Callable[[Any], Awaitable[Any]]]:
    """By their names in the service."""
    asked = _Questions(rooms)
    return {
        "ServerReady": asked.server_ready,
        "ModelReady": asked.model_ready,
        "ServerMetadata": asked.server_metadata,
        "ModelMetadata": asked.model_metadata,
        "ModelConfig": asked.model_config,
        "ModelStatistics": asked.model_statistics,
        "RepositoryIndex": asked.repository_index,
        "RepositoryModelLoad": asked.model_load,
        "RepositoryModelUnload": asked.model_unload,
        "TraceSetting": asked.trace_setting,
        "LogSettings": asked.log_settings,
        "SystemSharedMemoryStatus": asked.memory_status,
        "SystemSharedMemoryRegister": asked.memory_register,
        "SystemSharedMemoryUnregister": asked.memory_unregister,
        "CudaSharedMemoryStatus": asked.no_cuda,
        "CudaSharedMemoryRegister": asked.refuse_cuda,
        "CudaSharedMemoryUnregister": asked.no_cuda,
    }


class _Questions:
    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def server_ready(self, message: Any) -> Any:
        return {"ready": not await self._rooms.yard.why_not_ready()}

    async def model_ready(self, message: Any) -> Any:
        info = await self._rooms.yard.one(message.name, message.version)
        return {"ready": not why_not_served(info)}

    async def server_metadata(self, message: Any) -> Any:
        return described.server(
            self._rooms.version, self._rooms.regions is not None, self._rooms.model_control
        )

    async def model_metadata(self, message: Any) -> Any:
        return described.metadata(await self._rooms.yard.one(message.name, message.version))

    async def model_config(self, message: Any) -> Any:
        return {"config": described.config(await self._rooms.yard.described(message.name, message.version))}

    async def model_statistics(self, message: Any) -> Any:
        return await self._rooms.yard.statistics(message.name, message.version)

    async def repository_index(self, message: Any) -> Any:
        models = described.index(await self._rooms.yard.models())
        return {"models": [one for one in models if not message.ready or one["state"] == "READY"]}

    # ---- orders and settings ------------------------------------------------------------------

    async def model_load(self, message: Any) -> Any:
        control.check(self._rooms.model_control)
        parameters = {name: _chosen(value) for name, value in message.parameters.items()}
        await control.load(self._rooms.yard, message.model_name, parameters)
        return {}

    async def model_unload(self, message: Any) -> Any:
        control.check(self._rooms.model_control)
        await control.unload(self._rooms.yard, message.model_name)
        return {}

    async def trace_setting(self, message: Any) -> Any:
        if message.model_name:
            await self._rooms.yard.one(message.model_name)
        settings.check_trace({name: list(asked.value) for name, asked in message.settings.items()})
        return {"settings": {name: {"value": list(value)} for name, value in settings.TRACE.items()}}

    async def log_settings(self, message: Any) -> Any:
        settings.check_log({name: _chosen(asked) for name, asked in message.settings.items()})
        kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
        current = settings.log_settings().items()
        return {"settings": {name: {kinds[type(value)]: value} for name, value in current}}

    # ---- clients' shared memory -----------------------------------------------------------------

    async def memory_status(self, message: Any) -> Any:
        status = self._rooms.shared().status(message.name or None)
        return {"regions": {region["name"]: region for region in status}}

    async def memory_register(self, message: Any) -> Any:
        self._rooms.shared().register(message.name, message.key, message.offset, message.byte_size)
        return {}

    async def memory_unregister(self, message: Any) -> Any:
        if self._rooms.regions is not None:  # else nothing is registered, which is what is asked for
            self._rooms.regions.unregister(message.name or None)
        return {}

    async def no_cuda(self, message: Any) -> Any:
        """There are no such regions, so all of them are gone."""
        return {}

    async def refuse_cuda(self, message: Any) -> Any:
        raise invalid(NO_CUDA)


def _chosen(value: Any) -> Any:
    """The one of a oneof that was sent; None: none was."""
    name = value.WhichOneof("parameter_choice")
    return None if name is None else getattr(value, name)
