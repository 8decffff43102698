"""One NVIDIA GPU: what it is, its memory, a stream. The only file that imports NVIDIA's bindings of CUDA."""

from __future__ import annotations

import importlib
import weakref
from typing import Any

import numpy as np

from onnxplain.engine.executors.protocol import Array, Closing
from onnxplain.errors import BackendFailed, DeviceMissing, OutOfMemory, importing

# CUDA's own names of errors: what no program can mend, and what a smaller batch may.
UNFIT = {
    "cudaErrorInsufficientDriver": "the driver is too old for this CUDA, or there is none",
    "cudaErrorSystemDriverMismatch": "the driver and its libraries are of different versions",
    "cudaErrorCallRequiresNewerDriver": "the driver is too old for this CUDA",
    "cudaErrorCompatNotSupportedOnDevice": "this GPU cannot be used with CUDA's forward compatibility",
    "cudaErrorStubLibrary": "a stub stands in for the driver's library",
    "cudaErrorNoDevice": "there is no GPU",
    "cudaErrorInvalidDevice": "there is no GPU of that number",
    "cudaErrorDevicesUnavailable": "the GPU is in exclusive use by another process",
    "cudaErrorNoKernelImageForDevice": "the library has no code for this GPU",
    "cudaErrorInitializationError": "the driver could not be started",
}
NO_MEMORY = "cudaErrorMemoryAllocation"


class Gpu:
    """A device that is there, by its number.

    `name`; `capability`, such as `8.9`; `driver`: the newest CUDA that its driver runs, such as `13.0`.

    Raises:
        BackendMissing: the bindings are not installed.
        DeviceMissing: there is no such device, or its driver is too old.
    """

    def __init__(self, number: int, extra: str) -> None:
        with importing("cuda-bindings", extra):
            self.cuda: Any = importlib.import_module("cuda.bindings.runtime")
        self.number = number
        (version,) = self.call("cudaDriverGetVersion")
        (count,) = self.call("cudaGetDeviceCount")
        if number >= count:
            raise DeviceMissing(f"GPU {number}: this machine has {count}, counted from 0; next: choose another")
        self.use()
        (about,) = self.call("cudaGetDeviceProperties", number)
        self.name: str = about.name.split(b"\0")[0].decode(errors="replace")
        self.capability = f"{about.major}.{about.minor}"
        self.driver = f"{version // 1000}.{version % 1000 // 10}"

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"

    def call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        """What a function of CUDA's runtime returns beside its error code.

        Raises:
            OutOfMemory: there is not enough memory.
            DeviceMissing: this driver or device cannot be used at all.
            BackendFailed: anything else.
        """
        error, *rest = getattr(self.cuda, function)(*arguments)
        if error == self.cuda.cudaError_t.cudaSuccess:
            return tuple(rest)
        self.cuda.cudaGetLastError()  # CUDA would hand it to whoever asks next
        if error.name == NO_MEMORY:
            raise OutOfMemory(f"GPU {self.number}: out of memory ({function})")
        if error.name in UNFIT:
            raise DeviceMissing(
                f"GPU {self.number}: {UNFIT[error.name]} ({function}: {error.name}); "
                "next: nvidia-smi lists the GPUs and the driver of this machine"
            )
        raise BackendFailed(f"GPU {self.number}: {function} failed: {error.name}")

    def use(self) -> None:
        """Make it the device of this thread: CUDA keeps one for each."""
        self.call("cudaSetDevice", self.number)

    def page_locked(self, size: int) -> Array:
        """Memory of the host that the device copies from and to by itself; freed with the last view of it."""
        (address,) = self.call("cudaMallocHost", max(size, 1))
        owner = PageLocked(int(address), size)
        weakref.finalize(owner, self.cuda.cudaFreeHost, int(address))
        return np.asarray(owner)


class PageLocked:
    """Bytes at an address, for NumPy, which keeps this object as long as there is a view of them."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}


class Stream(Closing):
    """What is given to the device to do, in order."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        (self._stream,) = gpu.call("cudaStreamCreate")
        self.handle = int(self._stream)

    def wait(self) -> None:
        """Until all is done. Raises what went wrong meanwhile."""
        self.gpu.call("cudaStreamSynchronize", self._stream)

    def copy(self, target: int, source: int, size: int, kind: str) -> None:
        direction = getattr(self.gpu.cuda.cudaMemcpyKind, kind)
        self.gpu.call("cudaMemcpyAsync", target, source, size, direction, self._stream)

    def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            self.gpu.call("cudaStreamDestroy", stream)


class Buffer(Closing):
    """Memory on the device for one tensor of at most `shape`, and its like on the host to fill it from and read it to.

    Only `fill` and `read` cross the bus: whoever binds `address` to another model leaves the values where they are.
    """

    def __init__(self, gpu: Gpu, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.gpu, self.dtype = gpu, dtype
        self.size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.host: Array | None = gpu.page_locked(self.size)
        (address,) = gpu.call("cudaMalloc", max(self.size, 1))
        self.address = int(address)

    def view(self, shape: tuple[int, ...]) -> Array:
        """The first elements of the memory on the host."""
        if self.host is None:
            raise BackendFailed("this memory has been freed")
        size = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        return self.host[:size].view(self.dtype).reshape(shape)

    def fill(self, values: Array, stream: Stream) -> None:
        """Values on the way to the device; `values` may change at once."""
        host = self.view(values.shape)
        np.copyto(host, values)
        stream.copy(self.address, host.ctypes.data, host.nbytes, "cudaMemcpyHostToDevice")

    def read(self, shape: tuple[int, ...], stream: Stream) -> Array:
        """Values on the way from the device: there when the stream is done, until the next `read`."""
        host = self.view(shape)
        stream.copy(host.ctypes.data, self.address, host.nbytes, "cudaMemcpyDeviceToHost")
        return host

    def close(self) -> None:
        self.host = None
        if self.address:
            address, self.address = self.address, 0
            self.gpu.call("cudaFree", address)
