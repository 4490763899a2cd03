"""Where an index may live. ``device:cpu`` is the GPU backend's own code on torch's CPU device, with
Faiss's lists in memory."""

import pytest

from streamer.dedup.host import HostBackend


@pytest.fixture(params=["host", "device:cpu", pytest.param("device:cuda:0", marks=pytest.mark.gpu)])
def backend(request, monkeypatch):
    """An object of a class whose sizes are for thousands of rows: the GPU's own are for millions."""
    if request.param == "host":
        return type("SmallHostBackend", (HostBackend,), {})()
    from streamer.dedup import device, device_cells  # imports torch

    monkeypatch.setattr(device.DeviceTail, "span", 1_536)
    for module, name, value in (
        (device, "CHUNK", 512), (device, "OVERLAP", 4_096), (device_cells, "PROBES", 8), (device_cells, "LOOKS", 100),
        (device_cells, "PRODUCTS", 200_000), (device_cells, "BEST", 2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    small = type(
        "SmallDeviceBackend", (device.DeviceBackend,), {"merge_rows": 2_048, "list_rows": 64}
    )
    return small(request.param.removeprefix("device:"))
