//! Spans of requests, exported by OTLP over gRPC (feature `otlp`).
//!
//! Relevant if you want to see a request among those of other programs. A request is a span, with a span for its time in the
//! queue and one for its run beneath it; the run says where its time went. Requests with a `traceparent` continue that trace,
//! if it is sampled; of the others a share begins a trace of its own.
//!
//! Invariant: exporting never delays a request. Spans wait in a bounded queue and are dropped where the collector is slower.

use std::time::{Duration, Instant, SystemTime};

use fcdcc::{Error, Result};
use opentelemetry::trace::{
    Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use crate::access::Entry;
use crate::cost::RunTimes;
use crate::origin::Trace;
use crate::protocol::Protocol;
use crate::traces::Traces;

/// The longest time for handing spans to the collector, also at the end.
const LIMIT: Duration = Duration::from_secs(5);

/// What exports spans.
pub(crate) struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Spans {
    /// Exports to a collector. Must be called within the runtime that will carry the connection.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for an address that is none.
    pub(crate) fn new(traces: &Traces) -> Result<Self> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&traces.endpoint)
            .with_timeout(LIMIT)
            .build()
            .map_err(|e| {
                let help = "give that of a collector's gRPC, such as http://127.0.0.1:4317";
                Error::invalid("address of the collector", format!("{:?} ({e})", traces.endpoint), help)
            })?;
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(traces.ratio)));
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name("fcdcc").with_attribute(version).build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("fcdcc-serve");
        Ok(Self { provider, tracer })
    }

    /// Adds a request that ended now.
    pub(crate) fn add(&self, entry: &Entry<'_>) {
        let (now, ended) = (Instant::now(), SystemTime::now());
        let at = |instant: Instant| ended - now.saturating_duration_since(instant);
        let parent = entry
            .origin
            .trace
            .map_or_else(Context::new, |trace| Context::new().with_remote_span_context(context(&trace)));
        let method = match (entry.origin.protocol, entry.model) {
            (Protocol::Http, Some((model, _))) => format!("infer {model}"),
            (Protocol::Grpc, Some((model, _))) => format!("ModelInfer {model}"),
            (_, None) => "infer".to_owned(),
        };
        let builder = self.tracer.span_builder(method).with_kind(SpanKind::Server);
        let builder = builder.with_start_time(ended - entry.time).with_attributes(attributes(entry));
        let mut request = builder.start_with_context(&self.tracer, &parent);
        if entry.status >= 500 {
            request.set_status(Status::error(format!("status {}", entry.status)));
        }
        let own = Context::new().with_remote_span_context(request.span_context().clone());
        if let Some((times, began)) = entry.times.and_then(|times| Some((times, times.began?))) {
            let part = |name: &'static str, from: Instant, to: Instant, attributes: Vec<KeyValue>| {
                let builder = self.tracer.span_builder(name).with_kind(SpanKind::Internal);
                let builder = builder.with_start_time(at(from)).with_attributes(attributes);
                builder.start_with_context(&self.tracer, &own).end_with_timestamp(at(to));
            };
            part("queue", began.checked_sub(times.queue).unwrap_or(began), began, Vec::new());
            part("run", began, began + times.run(), phases(&times));
        }
        request.end_with_timestamp(ended);
    }

    /// Hands over what waits, and ends. The runtime must go on meanwhile.
    pub(crate) fn end(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LIMIT) {
            tracing::warn!("the last spans were not exported: {error}");
        }
    }
}

fn context(trace: &Trace) -> SpanContext {
    let flags = if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (id, span) = (TraceId::from_bytes(trace.id), SpanId::from_bytes(trace.span));
    SpanContext::new(id, span, flags, true, TraceState::default())
}

/// The attributes of a request, under the names of the semantic conventions where there are any.
fn attributes(entry: &Entry<'_>) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("http.request.method", entry.origin.method),
        KeyValue::new("url.path", entry.origin.path.clone()),
        KeyValue::new("http.response.status_code", i64::from(entry.status)),
    ];
    if let Some(client) = entry.origin.client {
        all.push(KeyValue::new("client.address", client.ip().to_string()));
    }
    if let Some((model, version)) = entry.model {
        all.push(KeyValue::new("fcdcc.model", model.to_owned()));
        all.push(KeyValue::new("fcdcc.version", i64::try_from(version).unwrap_or(i64::MAX)));
    }
    if let Some(items) = entry.items {
        all.push(KeyValue::new("fcdcc.items", i64::try_from(items).unwrap_or(i64::MAX)));
    }
    all
}

/// Milliseconds of the phases of a run.
fn phases(times: &RunTimes) -> Vec<KeyValue> {
    let ms =
        |(name, time): (&str, Duration)| KeyValue::new(format!("fcdcc.{name}_ms"), time.as_secs_f64() * 1e3);
    times.phases().map(ms).into()
}
