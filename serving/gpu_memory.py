"""The memory of the GPUs that this process can see, as NVIDIA's management library tells it."""

from collections.abc import Iterable

import pynvml
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class GpuMemory(Collector):
    """Used and total bytes of each GPU, whoever uses them; nothing where the driver does not answer."""

    def collect(self) -> Iterable[Metric]:
        """Ask the driver."""
        used = GaugeMetricFamily(
            "cognate_gpu_memory_used_bytes", "Memory in use, by any process.", labels=["gpu"]
        )
        total = GaugeMetricFamily("cognate_gpu_memory_total_bytes", "Memory there is.", labels=["gpu"])
        try:
            pynvml.nvmlInit()
            try:
                for number in range(pynvml.nvmlDeviceGetCount()):
                    memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(number))
                    used.add_metric([str(number)], memory.used)
                    total.add_metric([str(number)], memory.total)
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return []
        return [used, total]
