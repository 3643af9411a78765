//! The protocol over gRPC: what methods answer, and what becomes of calls when clients, time or the server end.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request as HttpRequest;
use bytes::Bytes;
use fcdcc_serve::Tokens;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::calls::pb::infer_parameter::ParameterChoice;
use crate::calls::pb::{self, InferTensorContents};
use crate::calls::{channel, client, parameter, request, run, scores, until, wanted};
use crate::client::connect;
use crate::site::{Site, check, close, expected, images, wait_for};

#[test]
fn a_server_describes_itself_and_its_models() {
    let site = Site::new("[batching]\nmax_size = 4\npreferred_sizes = [2]\nmax_delay = '3ms'");
    run(async {
        let mut client = client(site.grpc).await;
        assert!(client.server_live(pb::ServerLiveRequest {}).await.unwrap().into_inner().live);
        assert!(client.server_ready(pb::ServerReadyRequest {}).await.unwrap().into_inner().ready);
        let about = client.server_metadata(pb::ServerMetadataRequest {}).await.unwrap().into_inner();
        assert_eq!(about.name, "fcdcc");
        let of = |name: &str| pb::ModelReadyRequest { name: name.to_owned(), version: String::new() };
        assert!(client.model_ready(of("digits")).await.unwrap().into_inner().ready);
        assert_eq!(client.model_ready(of("nothing")).await.unwrap_err().code(), Code::NotFound);
        let of = pb::ModelMetadataRequest { name: "digits".to_owned(), version: "1".to_owned() };
        let model = client.model_metadata(of).await.unwrap().into_inner();
        assert_eq!(
            (model.inputs[0].datatype.as_str(), &model.inputs[0].shape[..]),
            ("FP32", &[-1, 1, 32, 32][..])
        );
        assert_eq!((model.versions, &model.outputs[0].shape[..]), (vec!["1".to_owned()], &[-1, 10][..]));
        let of = pb::ModelConfigRequest { name: "digits".to_owned(), version: String::new() };
        let config = client.model_config(of).await.unwrap().into_inner().config.unwrap();
        assert_eq!((config.max_batch_size, config.input[0].data_type()), (4, pb::DataType::TypeFp32));
        assert_eq!(config.input[0].dims, [1, 32, 32]);
        let batching = config.dynamic_batching.unwrap();
        assert_eq!(
            (batching.preferred_batch_size, batching.max_queue_delay_microseconds),
            (vec![2, 4], 3000)
        );
        let index = pb::RepositoryIndexRequest { ready: true, ..pb::RepositoryIndexRequest::default() };
        let index = client.repository_index(index).await.unwrap().into_inner().models;
        assert_eq!((index.len(), index[0].state.as_str()), (1, "READY"));
    });
}

#[test]
fn answers_equal_those_of_the_library_raw_and_listed() {
    let site = Site::new("");
    run(async {
        let mut client = client(site.grpc).await;
        let images = images(2, 3);
        let mut raw = request(&images);
        raw.id = "q-1".to_owned();
        raw.parameters.insert("report".to_owned(), parameter(ParameterChoice::BoolParam(true)));
        let answer = client.model_infer(raw.clone()).await.unwrap().into_inner();
        assert_eq!((answer.id.as_str(), &answer.outputs[0].shape[..]), ("q-1", &[2, 10][..]));
        check(&scores(&answer), &images);
        let Some(ParameterChoice::StringParam(report)) = &answer.parameters["report"].parameter_choice else {
            panic!("{:?}", answer.parameters)
        };
        let report: serde_json::Value = serde_json::from_str(report).unwrap();
        assert!(report["layers"][0]["used"].as_array().unwrap().len() > 1, "{report}");
        let mut listed = request(&images);
        listed.raw_input_contents.clear();
        listed.inputs[0].contents =
            Some(InferTensorContents { fp32_contents: images.clone(), ..InferTensorContents::default() });
        let answer = client.model_infer(listed).await.unwrap().into_inner();
        assert!(answer.parameters.is_empty());
        check(&scores(&answer), &images);
        // The largest scores instead of all.
        let expected = expected(&images);
        let mut best: Vec<usize> = (0..10).collect();
        best.sort_by(|a, b| expected[*b].total_cmp(&expected[*a]));
        let name = answer.outputs[0].name.clone();
        raw.outputs = vec![wanted(&name, "classification", 2)];
        let answer = client.model_infer(raw).await.unwrap().into_inner();
        let output = &answer.outputs[0];
        assert_eq!((output.datatype.as_str(), &output.shape[..]), ("BYTES", &[2, 2][..]));
        let bytes = &answer.raw_output_contents[0];
        let length = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
        let first = std::str::from_utf8(&bytes[4..4 + length]).unwrap();
        assert!(first.ends_with(&format!(":{}", best[0])), "{first} where {} is best", best[0]);
        // Counted like requests over HTTP.
        let of = pb::ModelStatisticsRequest { name: "digits".to_owned(), version: String::new() };
        let stats = client.model_statistics(of).await.unwrap().into_inner().model_stats.remove(0);
        assert_eq!((stats.inference_count, stats.execution_count), (6, 3));
        let inference = stats.inference_stats.unwrap();
        assert_eq!(inference.success.unwrap().count, 3);
        assert!(inference.compute_infer.unwrap().ns > 0);
        assert_eq!(stats.batch_stats[0].batch_size, 2);
    });
}

#[test]
fn wrong_calls_are_refused_with_their_reason() {
    let site = Site::with("", |options| options.max_body_bytes = 100_000);
    run(async {
        let mut client = client(site.grpc).await;
        let image = images(1, 1);
        let changed = |change: &dyn Fn(&mut pb::ModelInferRequest)| {
            let mut request = request(&image);
            change(&mut request);
            request
        };
        let rows: Vec<(pb::ModelInferRequest, Code, &str)> = vec![
            (changed(&|r| r.model_name = "nothing".into()), Code::NotFound, "there are digits"),
            (changed(&|r| r.model_version = "7".into()), Code::NotFound, "no version"),
            (changed(&|r| r.inputs[0].name = "x".into()), Code::InvalidArgument, "image is missing"),
            (changed(&|r| r.inputs[0].shape[0] = 2), Code::InvalidArgument, "4096 bytes where 8192"),
            (changed(&|r| r.raw_input_contents.clear()), Code::InvalidArgument, "neither contents"),
            (changed(&|r| r.outputs = vec![wanted("y", "x", 1)]), Code::InvalidArgument, "parameter x"),
            (
                changed(&|r| r.raw_input_contents[0] = Bytes::from(vec![0; 200_000])),
                Code::OutOfRange,
                "message length too large",
            ),
        ];
        for (request, code, part) in rows {
            let error = client.model_infer(request).await.unwrap_err();
            assert!(error.code() == code && error.message().contains(part), "{part}: {error:?}");
        }
        let error = client.system_shared_memory_status(pb::SystemSharedMemoryStatusRequest::default());
        let error = error.await.unwrap_err();
        assert!(error.code() == Code::Unimplemented && error.message().contains("shared memory is not"));
        let error = client.log_settings(pb::LogSettingsRequest {}).await.unwrap_err();
        assert!(error.code() == Code::Unimplemented && error.message().contains("log settings"));
        // It still answers.
        let answer = client.model_infer(request(&image)).await.unwrap().into_inner();
        assert!(close(&scores(&answer), &expected(&image)));
    });
}

#[test]
fn a_message_of_many_parts_is_refused_before_it_takes_memory() {
    let site = Site::new("");
    run(async {
        let mut client = client(site.grpc).await;
        let mut many = request(&images(1, 1));
        many.outputs = vec![pb::model_infer_request::InferRequestedOutputTensor::default(); 20_000];
        let error = client.model_infer(many).await.unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.message().contains("16384"), "{error:?}");
    });
}

#[test]
fn a_call_that_is_cancelled_cancels_its_run() {
    let site = Site::new("");
    site.gate.close();
    run(async {
        let mut client = client(site.grpc).await;
        let call = client.model_infer(request(&images(1, 1)));
        tokio::select! {
            answer = call => panic!("{answer:?}"),
            () = until("the run", || site.held()) => {}
        }
        until("the cancellation", || !site.held() && site.gate.cancelled.load(Ordering::SeqCst) > 0).await;
    });
    let series = "fcdcc_serve_requests_total{model=\"digits\",status=\"499\"}";
    wait_for("the count", || site.metric(series) == 1.0);
}

/// A call whose client does not watch the time itself.
async fn patient_call(site: &Site, timeout: &'static str) -> axum::http::HeaderMap {
    let stream = tokio::net::TcpStream::connect(site.grpc).await.unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let message = request(&images(1, 1)).encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let call = HttpRequest::post(format!("http://{}/inference.GRPCInferenceService/ModelInfer", site.grpc))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(Body::from(body))
        .unwrap();
    sender.send_request(call).await.unwrap().headers().clone()
}

#[test]
fn the_time_of_a_call_ends_its_run() {
    let site = Site::new("");
    site.gate.close();
    let started = Instant::now();
    let head = run(patient_call(&site, "200m"));
    assert_eq!(head["grpc-status"], "4", "{head:?}");
    assert!(head["grpc-message"].to_str().unwrap().contains("200ms"), "{head:?}");
    assert!(started.elapsed() < Duration::from_secs(20), "it took {:?}", started.elapsed());
    wait_for("the end of the run", || !site.held());
    assert!(site.gate.cancelled.load(Ordering::SeqCst) > 0);
    site.gate.open();
    assert!(
        run(patient_call(&site, "60S")).get("grpc-status").is_none(),
        "its status comes after its answer"
    );
    assert_eq!(run(patient_call(&site, "soon"))["grpc-status"], "3");
}

#[test]
fn a_stream_answers_in_order_and_survives_errors() {
    let site = Site::new("");
    run(async {
        let mut client = client(site.grpc).await;
        let (first, last) = (images(1, 1), images(2, 2));
        let named = |id: &str, mut request: pb::ModelInferRequest| {
            request.id = id.to_owned();
            request
        };
        let mut wrong = request(&first);
        wrong.inputs[0].datatype = "INT8".to_owned();
        let mut marked = request(&last);
        let mark = parameter(ParameterChoice::BoolParam(true));
        marked.parameters.insert("triton_enable_empty_final_response".to_owned(), mark);
        let sent = [named("a", request(&first)), named("b", wrong), named("c", marked)];
        let answers = client.model_stream_infer(futures_util::stream::iter(sent)).await;
        let mut answers = answers.unwrap().into_inner();
        let mut got = Vec::new();
        while let Some(answer) = answers.message().await.unwrap() {
            got.push(answer);
        }
        let ids: Vec<_> = got.iter().map(|a| a.infer_response.as_ref().unwrap().id.clone()).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        check(&scores(got[0].infer_response.as_ref().unwrap()), &first);
        assert!(got[0].infer_response.as_ref().unwrap().parameters.is_empty());
        assert!(got[1].error_message.contains("1024"), "{}", got[1].error_message);
        let answer = got[2].infer_response.as_ref().unwrap();
        check(&scores(answer), &last);
        assert!(answer.parameters.contains_key("triton_final_response"));
    });
}

#[test]
fn a_server_that_ends_answers_calls_and_ends_streams() {
    let mut site = Site::new("");
    let address = site.grpc;
    let image = images(1, 8);
    let expected = expected(&image);
    run(async {
        let mut client = client(address).await;
        // A stream whose client has more to say, and a watcher of health.
        let (sender, receiver) = tokio::sync::mpsc::channel::<pb::ModelInferRequest>(1);
        let requests = futures_util::stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|request| (request, receiver))
        });
        let mut stream = client.model_stream_infer(requests).await.unwrap().into_inner();
        sender.send(request(&image)).await.unwrap();
        assert!(stream.message().await.unwrap().unwrap().error_message.is_empty());
        let mut health = HealthClient::new(channel(address).await);
        let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
        site.gate.close();
        let call = tokio::spawn({
            let (mut client, request) = (client.clone(), request(&image));
            async move { client.model_infer(request).await }
        });
        until("the run", || site.held()).await;
        let server = site.server.take().unwrap();
        let ending = std::thread::spawn(move || server.drain());
        // Streams end, the watcher hears why, and the call is still computed.
        assert!(stream.message().await.unwrap().is_none());
        assert_eq!(watch.message().await.unwrap().unwrap().status, 2);
        assert!(watch.message().await.unwrap().is_none());
        assert!(!ending.is_finished(), "it ended before its calls");
        site.gate.open();
        let answer = call.await.unwrap().unwrap().into_inner();
        assert!(close(&scores(&answer), &expected));
        drop((client, health, sender));
        let ended = tokio::task::spawn_blocking(move || ending.join().unwrap()).await.unwrap();
        assert_eq!(ended, 0);
    });
}

#[test]
fn tokens_open_everything_but_probes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens");
    std::fs::write(&path, "correct-horse-battery\n").unwrap();
    let site = Site::with("", |options| options.tokens = Some(Tokens::read(&path).unwrap()));
    run(async {
        let mut client = client(site.grpc).await;
        assert!(client.server_ready(pb::ServerReadyRequest {}).await.unwrap().into_inner().ready);
        let mut health = HealthClient::new(channel(site.grpc).await);
        assert_eq!(health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status, 1);
        let image = images(1, 1);
        let error = client.model_infer(request(&image)).await.unwrap_err();
        assert!(error.code() == Code::Unauthenticated && error.message().contains("authorization"));
        let with = |token: &str| {
            let mut call = Request::new(request(&image));
            call.metadata_mut().insert("authorization", token.parse().unwrap());
            call
        };
        let wrong = client.model_infer(with("Bearer correct-horse-batterx")).await.unwrap_err();
        assert_eq!(wrong.code(), Code::Unauthenticated);
        assert!(client.model_infer(with("Bearer correct-horse-battery")).await.is_ok());
    });
}

#[test]
fn health_and_reflection_are_the_standard_ones() {
    let site = Site::new("");
    run(async {
        let mut health = HealthClient::new(channel(site.grpc).await);
        let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
        for service in ["", "inference.GRPCInferenceService"] {
            assert_eq!(health.check(of(service)).await.unwrap().into_inner().status, 1, "{service:?}");
        }
        assert_eq!(health.check(of("nothing")).await.unwrap_err().code(), Code::NotFound);
        let mut unknown = health.watch(of("nothing")).await.unwrap().into_inner();
        assert_eq!(unknown.message().await.unwrap().unwrap().status, 3);
        let mut reflection = ServerReflectionClient::new(channel(site.grpc).await);
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answers = reflection.server_reflection_info(futures_util::stream::iter([ask])).await;
        let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}")
        };
        let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
        for name in ["inference.GRPCInferenceService", "grpc.health.v1.Health"] {
            assert!(names.contains(&name), "{names:?}");
        }
    });
}

#[test]
fn a_silent_connection_is_closed_and_an_idle_client_is_not() {
    let site = Site::with("", |options| options.head_timeout = Duration::from_millis(600));
    let mut silent = connect(site.grpc);
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    run(async {
        let mut client = client(site.grpc).await;
        let (sender, receiver) = tokio::sync::mpsc::channel::<pb::ModelInferRequest>(1);
        let requests = futures_util::stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|request| (request, receiver))
        });
        // A stream ends with its connection.
        let mut answers = client.model_stream_infer(requests).await.unwrap().into_inner();
        // The pause of a client, several times the limit.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let image = images(1, 1);
        sender.send(request(&image)).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap().infer_response.unwrap();
        assert!(close(&scores(&answer), &expected(&image)));
    });
}
