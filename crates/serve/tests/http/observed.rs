//! What a server says of its requests: the page, costs, phases, the access log, and names that dashboards know.

use serde_json::{Value, json};

use crate::calls::{self, Client, run};
use crate::client::{get, post, send};
use crate::site::{PIXELS, Site, body, images, wait_for};

const INFER: &str = "/v2/models/digits/infer";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn the_page_is_served_with_a_strict_policy_and_without_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens");
    std::fs::write(&path, "token-of-the-test-1\n").unwrap();
    let tokens = fcdcc_serve::Tokens::read(&path).unwrap();
    let site = Site::with("", |options| options.tokens = Some(tokens));
    let page = get(site.address, "/");
    assert!(page.status == 200 && page.text().starts_with("<!doctype html>"));
    let policy = page.header("content-security-policy").unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert_eq!(get(site.address, "/other").status, 401);
}

#[test]
fn requests_of_foreign_pages_are_refused() {
    let site = Site::new("");
    let unload = |headers: &[(&str, &str)]| {
        send(site.address, "POST", "/v2/repository/models/digits/unload", headers, b"").status
    };
    assert_eq!(unload(&[("Sec-Fetch-Site", "cross-site")]), 403);
    assert_eq!(unload(&[("Origin", "https://example.com")]), 403);
    assert_eq!(get(site.address, "/v2/models/digits/ready").status, 200);
    assert_eq!(unload(&[("Sec-Fetch-Site", "same-origin"), ("Origin", "http://test")]), 200);
}

#[test]
fn a_classification_says_what_it_cost() {
    let site = Site::new("");
    let picture = vec![7; PIXELS];
    let answer = post(site.address, "/v2/models/digits/classify?top=10&cost=true", &picture).json();
    let of = |name: &str| answer["cost"][name].as_f64().unwrap_or_else(|| panic!("{name}: {answer}"));
    let phases = ["queue_ms", "encode_ms", "wait_ms", "decode_ms", "host_ms"];
    assert!(phases.into_iter().all(|name| of(name) > 0.0), "{answer}");
    assert!(of("bytes_up") > 0.0 && of("bytes_down") > 0.0 && of("subtasks") >= of("needed"), "{answer}");
    let workers = answer["cost"]["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 4);
    let used: u64 = workers.iter().map(|worker| worker["used"].as_u64().unwrap()).sum();
    assert!(used >= answer["cost"]["coded_layers"].as_u64().unwrap(), "{answer}");
    let classes = answer["classes"].as_array().unwrap();
    let sum: f64 = classes.iter().map(|class| class["probability"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{answer}");
    let plain = post(site.address, "/v2/models/digits/classify", &picture).json();
    assert!(plain.get("cost").is_none(), "{plain}");
}

#[test]
fn phases_and_known_names_are_among_the_metrics() {
    let site = Site::new("");
    for _ in 0..2 {
        assert_eq!(post(site.address, INFER, &body(&images(3, 1))).status, 200);
    }
    let phase = |name: &str| {
        site.metric(&format!("fcdcc_serve_phase_seconds_count{{model=\"digits\",phase=\"{name}\"}}"))
    };
    for name in ["input", "encode", "wait", "decode", "host", "output"] {
        wait_for("the phases", || phase(name) == 2.0);
    }
    let known = |name: &str| site.metric(&format!("{name}{{model=\"digits\",version=\"1\"}}"));
    wait_for("the requests", || known("nv_inference_request_success") == 2.0);
    assert_eq!((known("nv_inference_count"), known("nv_inference_exec_count")), (6.0, 2.0));
    assert_eq!(site.metric("fcdcc_serve_request_seconds_count{model=\"digits\"}"), 2.0);
    let sum = |name: &str| {
        site.metric(&format!("fcdcc_serve_phase_seconds_sum{{model=\"digits\",phase=\"{name}\"}}"))
    };
    let run = site.metric("fcdcc_serve_compute_seconds_sum{model=\"digits\"}");
    let parts: f64 = ["input", "encode", "wait", "decode", "host", "output"].map(sum).iter().sum();
    assert!(parts > 0.0 && parts <= run * 1.01, "phases of {parts} s in runs of {run} s");
}

#[test]
fn every_request_is_a_line_of_the_access_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let log = path.clone();
    let mut site = Site::with("", move |options| options.access_log = Some(log));
    let image = images(2, 1);
    let mut with_id: Value = serde_json::from_slice(&body(&image)).unwrap();
    with_id["id"] = json!("request-7");
    let headers = [("traceparent", TRACEPARENT)];
    assert_eq!(send(site.address, "POST", INFER, &headers, with_id.to_string().as_bytes()).status, 200);
    assert_eq!(post(site.address, INFER, b"{").status, 400);
    assert_eq!(post(site.address, "/v2/models/none/infer", b"{").status, 404);
    assert_eq!(get(site.address, "/v2").status, 200);
    // Probes and metrics are left out.
    for quiet in ["/v2/health/live", "/metrics", "/"] {
        assert_eq!(get(site.address, quiet).status, 200);
    }
    run(async {
        let mut client: Client = calls::client(site.grpc).await;
        let mut call = tonic::Request::new(calls::request(&image));
        call.metadata_mut().insert("traceparent", TRACEPARENT.parse().unwrap());
        client.model_infer(call).await.unwrap();
    });
    assert_eq!(site.server.take().unwrap().drain(), 0);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let statuses: Vec<u64> = lines.iter().map(|line| line["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [200, 400, 404, 200, 200], "{text}");
    let first = &lines[0];
    assert_eq!(
        (&first["id"], &first["items"], &first["model"]),
        (&json!("request-7"), &json!(2), &json!("digits"))
    );
    assert_eq!(
        (&first["path"], &first["method"], &first["protocol"]),
        (&json!(INFER), &json!("POST"), &json!("http"))
    );
    assert!(first["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{first}");
    let ms = |name: &str| first[name].as_f64().unwrap();
    let phases = ms("queue_ms") + ms("encode_ms") + ms("wait_ms") + ms("decode_ms") + ms("host_ms");
    assert!(phases > 0.0 && phases <= ms("ms") + 0.01, "{first}");
    for line in [first, &lines[4]] {
        assert_eq!(line["trace"], "0af7651916cd43dd8448eb211c80319c", "{line}");
    }
    assert!(lines[1].get("trace").is_none() && lines[3].get("model").is_none());
    assert_eq!(lines[4]["protocol"], "grpc");
    assert_eq!(lines[4]["path"], "/inference.GRPCInferenceService/ModelInfer");
}
