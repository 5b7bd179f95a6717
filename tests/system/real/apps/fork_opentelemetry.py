"""The SDK is set up when the module is imported, or by a hook: spans in batches, and metrics, over HTTP."""

import os
import uuid

from fork_common import Outcome, app_of
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

tracer = trace.get_tracer("shop")
asked = metrics.get_meter("shop").create_counter("asked")


def set_up() -> None:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
    if os.environ.get("METRICS") != "no":
        # It exports once a minute, and at the end of the process.
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        metrics.set_meter_provider(MeterProvider([reader]))


def work() -> Outcome:
    """name: of the span."""
    name = f"{os.getpid()} {uuid.uuid4().hex}"
    with tracer.start_as_current_span(name):
        asked.add(1)
    return {"name": name}


if os.environ["MADE"] == "when imported":
    set_up()
    work()
    trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]
app = app_of(work)
