"""What is asked and ordered over gRPC besides inference: messages in, plain values of the answer out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from . import control, described, settings
from .errors import invalid, refusal_of
from .regions import NO_CUDA
from .rooms import Rooms


class Questions:
    """Its methods have their names in the service, as is the custom for gRPC."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def methods(self) -> dict[str, Callable[[Any], Awaitable[Any]]]:
        """The methods by their names in the service."""
        return {name: getattr(self, name) for name in vars(Questions) if name[0].isupper()}

    async def ServerReady(self, message: Any) -> Any:
        return {"ready": not await self._rooms.yard.why_not_ready()}

    async def ModelReady(self, message: Any) -> Any:
        """Whoever waits for a model asks for it before it is there: as Triton's, this is no error."""
        try:
            info = await self._rooms.yard.one(message.name, message.version)
        except Exception as error:
            if refusal_of(error).status != 404:
                raise
            return {"ready": False}
        return {"ready": not self._rooms.yard.why_not_served(info)}

    async def ServerMetadata(self, message: Any) -> Any:
        return described.server(
            self._rooms.version, self._rooms.regions is not None, self._rooms.model_control
        )

    async def ModelMetadata(self, message: Any) -> Any:
        return described.metadata(await self._rooms.yard.one(message.name, message.version))

    async def ModelConfig(self, message: Any) -> Any:
        return {"config": described.config(await self._rooms.yard.described(message.name, message.version))}

    async def ModelStatistics(self, message: Any) -> Any:
        return await self._rooms.yard.statistics(message.name, message.version)

    async def RepositoryIndex(self, message: Any) -> Any:
        models = described.index(await self._rooms.yard.models())
        return {"models": [one for one in models if not message.ready or one["state"] == "READY"]}

    # ---- orders and settings ------------------------------------------------------------------

    async def RepositoryModelLoad(self, message: Any) -> Any:
        control.check(self._rooms.model_control)
        parameters = {name: _chosen(value) for name, value in message.parameters.items()}
        await control.load(self._rooms.yard, message.model_name, parameters)
        return {}

    async def RepositoryModelUnload(self, message: Any) -> Any:
        control.check(self._rooms.model_control)
        await control.unload(self._rooms.yard, message.model_name)
        return {}

    async def TraceSetting(self, message: Any) -> Any:
        if message.model_name:
            await self._rooms.yard.one(message.model_name)
        settings.check_trace({name: list(asked.value) for name, asked in message.settings.items()})
        return {"settings": {name: {"value": list(value)} for name, value in settings.TRACE.items()}}

    async def LogSettings(self, message: Any) -> Any:
        settings.check_log({name: _chosen(asked) for name, asked in message.settings.items()})
        kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
        current = settings.log_settings().items()
        return {"settings": {name: {kinds[type(value)]: value} for name, value in current}}

    # ---- clients' shared memory -----------------------------------------------------------------

    async def SystemSharedMemoryStatus(self, message: Any) -> Any:
        status = self._rooms.shared().status(message.name or None)
        return {"regions": {region["name"]: region for region in status}}

    async def SystemSharedMemoryRegister(self, message: Any) -> Any:
        self._rooms.shared().register(message.name, message.key, message.offset, message.byte_size)
        return {}

    async def SystemSharedMemoryUnregister(self, message: Any) -> Any:
        if self._rooms.regions is not None:  # else nothing is registered, which is what is asked for
            self._rooms.regions.unregister(message.name or None)
        return {}

    async def CudaSharedMemoryStatus(self, message: Any) -> Any:
        """There are no such regions, so all of them are gone."""
        return {}

    CudaSharedMemoryUnregister = CudaSharedMemoryStatus

    async def CudaSharedMemoryRegister(self, message: Any) -> Any:
        raise invalid(NO_CUDA)


def _chosen(value: Any) -> Any:
    """The value of a oneof; None: none was sent."""
    name = value.WhichOneof("parameter_choice")
    return None if name is None else getattr(value, name)
