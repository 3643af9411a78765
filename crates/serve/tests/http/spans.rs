//! Spans of requests, at a stand-in for a collector.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use fcdcc_serve::Traces;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

use crate::client::{post, send};
use crate::site::{Site, body, images};

const INFER: &str = "/v2/models/digits/infer";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Keeps the spans that it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|of| of.scope_spans);
        self.0.lock().unwrap().extend(spans.flat_map(|of| of.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a thread of its own until the process ends.
    fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let router = tonic::service::Routes::new(service).prepare().into_axum_router();
                while let Ok((stream, _)) = listener.accept().await {
                    let service = hyper_util::service::TowerToHyperService::new(router.clone());
                    let http = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                    tokio::spawn(async move {
                        let _ = http.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
                    });
                }
            });
        });
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }
}

/// The bytes that hexadecimal digits stand for.
fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    span.attributes.iter().find(|of| of.key == key)?.value.clone()?.value
}

#[test]
fn a_request_is_a_span_of_its_clients_trace() {
    let (collector, address) = Collector::start();
    let traces = Traces { endpoint: format!("http://{address}"), ratio: 0.0 };
    let mut site = Site::with("", move |options| options.traces = Some(traces));
    let traced = |flag: &str| format!("00-{TRACE}-b7ad6b7169203331-{flag}");
    let image = body(&images(2, 1));
    assert_eq!(send(site.address, "POST", INFER, &[("traceparent", &traced("01"))], &image).status, 200);
    // Not sampled by its client, and without a trace of its own: the share of those is 0.
    assert_eq!(send(site.address, "POST", INFER, &[("traceparent", &traced("00"))], &image).status, 200);
    assert_eq!(post(site.address, INFER, &image).status, 200);
    assert_eq!(site.server.take().unwrap().drain(), 0);
    let spans = collector.spans();
    let find =
        |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{spans:?}"));
    let (request, queue, run) = (find("infer digits"), find("queue"), find("run"));
    assert_eq!(spans.len(), 3, "{spans:?}");
    assert_eq!(request.trace_id, bytes(TRACE));
    assert_eq!(request.parent_span_id, bytes("b7ad6b7169203331"));
    for part in [queue, run] {
        assert_eq!((&part.trace_id, &part.parent_span_id), (&request.trace_id, &request.span_id));
        assert!(part.start_time_unix_nano >= request.start_time_unix_nano - 1_000_000, "{part:?}");
        assert!(part.end_time_unix_nano <= request.end_time_unix_nano + 1_000_000, "{part:?}");
        assert!(part.end_time_unix_nano >= part.start_time_unix_nano);
    }
    assert!(queue.end_time_unix_nano <= run.start_time_unix_nano + 1_000_000);
    assert_eq!(attribute(request, "http.response.status_code"), Some(Value::IntValue(200)));
    assert_eq!(attribute(request, "fcdcc.items"), Some(Value::IntValue(2)));
    let Some(Value::DoubleValue(wait)) = attribute(run, "fcdcc.wait_ms") else { panic!("{run:?}") };
    assert!(wait > 0.0);
}

#[test]
fn a_share_of_the_other_requests_begins_a_trace_and_no_collector_delays_them() {
    let (collector, address) = Collector::start();
    let traces = Traces { endpoint: format!("http://{address}"), ratio: 1.0 };
    let mut site = Site::with("", move |options| options.traces = Some(traces));
    assert_eq!(post(site.address, INFER, &body(&images(1, 1))).status, 200);
    assert_eq!(post(site.address, INFER, b"{").status, 400);
    assert_eq!(site.server.take().unwrap().drain(), 0);
    let roots = collector.spans().into_iter().filter(|span| span.parent_span_id.is_empty());
    assert_eq!(roots.map(|span| span.name).collect::<Vec<_>>(), ["infer digits", "infer digits"]);
    // No collector listens at this address.
    let traces = Traces { endpoint: "http://127.0.0.1:1".to_owned(), ratio: 1.0 };
    let mut site = Site::with("", move |options| options.traces = Some(traces));
    for _ in 0..20 {
        assert_eq!(post(site.address, INFER, &body(&images(1, 1))).status, 200);
    }
    let started = std::time::Instant::now();
    assert_eq!(site.server.take().unwrap().drain(), 0);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}
