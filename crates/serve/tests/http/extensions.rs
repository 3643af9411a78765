//! Extensions of the protocol over HTTP: statistics, configuration, packed bodies, pictures, classes, reports, priorities.

use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};

use crate::client::{connect, get, post, read_answer, request, send};
use crate::site::{PIXELS, Site, body, check, close, expected, images, scores, wait_for};

const INFER: &str = "/v2/models/digits/infer";

#[test]
fn configurations_and_statistics_have_the_usual_names() {
    let site = Site::new("[batching]\nmax_size = 4\npreferred_sizes = [2]\nmax_delay = '3ms'");
    let config = get(site.address, "/v2/models/digits/config").json();
    let output = get(site.address, "/v2/models/digits").json()["outputs"][0]["name"].clone();
    let expected = json!({
        "name": "digits", "platform": "onnx_fcdcc", "backend": "fcdcc", "max_batch_size": 4,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": [1, 32, 32]}],
        "output": [{"name": output, "data_type": "TYPE_FP32", "dims": [10]}],
        "dynamic_batching": {"preferred_batch_size": [2, 4], "max_queue_delay_microseconds": 3000},
    });
    assert_eq!(config, expected);
    assert_eq!(get(site.address, "/v2/models/digits/versions/1/config").json(), expected);
    let zero = get(site.address, "/v2/models/stats").json()["model_stats"][0].clone();
    assert_eq!((&zero["inference_count"], &zero["last_inference"]), (&json!(0), &json!(0)));
    assert_eq!(post(site.address, INFER, &body(&images(3, 1))).status, 200);
    assert_eq!(post(site.address, INFER, b"{").status, 400);
    for path in ["/v2/models/stats", "/v2/models/digits/stats", "/v2/models/digits/versions/1/stats"] {
        let stats = get(site.address, path).json()["model_stats"][0].clone();
        let counts = [&stats["inference_count"], &stats["execution_count"]].map(|n| n.as_u64().unwrap());
        assert_eq!(counts, [3, 1], "{path}: {stats}");
        let of = &stats["inference_stats"];
        for (name, count) in
            [("success", 1), ("fail", 1), ("queue", 1), ("compute_infer", 1), ("cache_hit", 0)]
        {
            assert_eq!(of[name]["count"], count, "{name}: {stats}");
        }
        let ns = |name: &str| of[name]["ns"].as_u64().unwrap();
        // A request takes as long as its parts at least; three items were filled up to four, which takes time.
        assert!(ns("success") >= ns("queue") + ns("compute_input") + ns("compute_infer"), "{stats}");
        assert!(ns("compute_infer") > 0 && ns("compute_input") > 0, "{stats}");
        assert_eq!((&stats["batch_stats"][0]["batch_size"], &stats["version"]), (&json!(3), &json!("1")));
        assert!(stats["last_inference"].as_u64().unwrap() > 1_700_000_000_000);
    }
    assert_eq!(get(site.address, "/v2/models/nothing/stats").status, 404);
    assert_eq!(get(site.address, "/v2/models/nothing/config").status, 404);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bodies_are_packed_in_both_directions() {
    let site = Site::with("", |options| options.max_body_bytes = 400_000);
    // Enough items for an answer that is worth packing.
    let images = images(12, 5);
    let plain = body(&images);
    for (name, packed) in [("gzip", gzip(&plain)), ("deflate", zlib(&plain))] {
        assert!(packed.len() < plain.len());
        let answer = send(site.address, "POST", INFER, &[("Content-Encoding", name)], &packed);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("Content-Encoding"), None);
        check(&scores(&answer.json()), &images);
        let answer = send(site.address, "POST", INFER, &[("Accept-Encoding", name)], &plain);
        assert_eq!(answer.header("Content-Encoding"), Some(name));
        let mut text = String::new();
        let read = match name {
            "gzip" => GzDecoder::new(&answer.body[..]).read_to_string(&mut text),
            _ => ZlibDecoder::new(&answer.body[..]).read_to_string(&mut text),
        };
        assert!(read.unwrap() > answer.body.len());
        check(&scores(&serde_json::from_str(&text).unwrap()), &images);
    }
    // The limit holds for what a body unpacks to: 300 MB, from 300 kB.
    let bomb = gzip(&vec![b' '; 300_000_000]);
    assert!(bomb.len() < 400_000);
    let answer = send(site.address, "POST", INFER, &[("Content-Encoding", "gzip")], &bomb);
    assert!(answer.status == 413 && answer.error().contains("400000 bytes"), "{}", answer.text());
    let damaged = send(site.address, "POST", INFER, &[("Content-Encoding", "deflate")], b"no zlib");
    assert!(damaged.status == 400 && damaged.error().contains("not deflate"), "{}", damaged.text());
}

/// Different pictures, which are their bytes.
fn pictures() -> [Vec<u8>; 2] {
    [13, 29].map(|step| (0..PIXELS).map(|index| u8::try_from(index * step % 251).unwrap()).collect())
}

#[test]
fn pictures_are_elements_of_inputs_where_a_model_declares_them() {
    let site = Site::new("[picture]\ndivisor = 2");
    let pictures = pictures();
    let values: Vec<f32> = pictures.concat().iter().map(|byte| f32::from(*byte) / 2.0).collect();
    let input = |more: Value| {
        let mut input = json!({"name": "image", "shape": [2, 1], "datatype": "BYTES"});
        let own = input.as_object_mut().unwrap();
        own.extend(more.as_object().unwrap().clone());
        json!({ "inputs": [input] }).to_string().into_bytes()
    };
    let texts: Vec<String> = pictures.iter().map(|picture| STANDARD.encode(picture)).collect();
    let answer = post(site.address, INFER, &input(json!({ "data": texts })));
    check(&scores(&answer.json()), &values);
    let lengths = pictures.iter().flat_map(|picture| {
        let length = u32::try_from(picture.len()).unwrap().to_le_bytes();
        [&length[..], picture].concat()
    });
    let bytes: Vec<u8> = lengths.collect();
    let mut body = input(json!({ "parameters": {"binary_data_size": bytes.len()} }));
    let length = body.len().to_string();
    body.extend(bytes);
    let headers = [("Inference-Header-Content-Length", length.as_str())];
    check(&scores(&send(site.address, "POST", INFER, &headers, &body).json()), &values);
    let short = post(site.address, INFER, &input(json!({ "data": [STANDARD.encode("short"), texts[0]] })));
    assert!(short.status == 400 && short.error().contains("5 where 1024"), "{}", short.text());
    // A model that declares none takes numbers only.
    let site = Site::new("");
    let refused = post(site.address, INFER, &input(json!({ "data": texts })));
    assert!(refused.status == 400 && refused.error().contains("[picture]"), "{}", refused.text());
}

/// A request for the output with parameters, and of the request.
fn asking(site: &Site, images: &[f32], output: &Value, all: &Value) -> Value {
    let name = get(site.address, "/v2/models/digits").json()["outputs"][0]["name"].clone();
    let mut request: Value = serde_json::from_slice(&body(images)).unwrap();
    request["outputs"] = json!([{ "name": name, "parameters": output }]);
    request["parameters"] = all.clone();
    post(site.address, INFER, request.to_string().as_bytes()).json()
}

#[test]
fn outputs_are_classified_on_demand() {
    let site = Site::new("labels = 'labels.txt'");
    std::fs::write(site.folder.path().join("digits/1/labels.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj").unwrap();
    assert_eq!(post(site.address, "/v2/repository/models/digits/load", b"").status, 200);
    let images = images(2, 3);
    let answer = asking(&site, &images, &json!({"classification": 3}), &json!({}));
    let output = &answer["outputs"][0];
    assert_eq!((&output["datatype"], &output["shape"]), (&json!("BYTES"), &json!([2, 3])));
    let expected = expected(&images);
    for (item, scores) in expected.chunks(10).enumerate() {
        let mut order: Vec<usize> = (0..10).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        for (place, index) in order[..3].iter().enumerate() {
            let text = output["data"][3 * item + place].as_str().unwrap();
            let parts: Vec<&str> = text.split(':').collect();
            let label = char::from(b'a' + u8::try_from(*index).unwrap()).to_string();
            assert_eq!(parts[1..], [index.to_string(), label], "{text}");
            assert!(close(&[parts[0].parse().unwrap()], &[scores[*index]]), "{text}");
        }
    }
}

#[test]
fn the_report_of_a_run_comes_with_its_answer() {
    let site = Site::new("");
    let answer = asking(&site, &images(1, 1), &json!({}), &json!({"report": true}));
    let report: Value = serde_json::from_str(answer["parameters"]["report"].as_str().unwrap()).unwrap();
    assert_eq!((&report["command"], &report["schema"]), (&json!("serve"), &json!(1)));
    let layers = report["layers"].as_array().unwrap();
    assert!(
        !layers.is_empty() && layers.iter().any(|layer| layer["recovery_threshold"].is_u64()),
        "{report}"
    );
    assert!(asking(&site, &images(1, 1), &json!({}), &json!({})).get("parameters").is_none());
}

#[test]
fn requests_of_a_higher_priority_go_first() {
    let site = Site::with("", |options| options.threads = 1);
    site.gate.close();
    let send = |count: usize, priority: u32| {
        let mut request_body: Value = serde_json::from_slice(&body(&images(count, 1))).unwrap();
        request_body["parameters"] = json!({ "priority": priority });
        let mut stream = connect(site.address);
        let bytes = request("POST", INFER, &[], request_body.to_string().as_bytes());
        stream.write_all(&bytes).unwrap();
        stream
    };
    let waiting = |count: f64| site.held() && site.metric("fcdcc_serve_waiting") == count;
    let items = || site.metric("fcdcc_serve_run_items_sum{model=\"digits\"}");
    // The first one runs; the others wait. Their numbers of items tell them apart.
    let mut streams = Vec::new();
    for (place, (count, priority)) in [(1, 0), (2, 0), (4, 5), (8, 1)].into_iter().enumerate() {
        streams.push(send(count, priority));
        wait_for("the queue", || waiting(place as f64));
    }
    let mut streams = streams.into_iter();
    let (running, none, fifth, first) = (streams.next(), streams.next(), streams.next(), streams.next());
    // A request whose client goes away counts its items only if it was running.
    drop(running);
    wait_for("the second run", || items() == 1.0 && waiting(2.0));
    drop(first);
    wait_for("the third run", || items() == 9.0 && waiting(1.0));
    drop(fifth);
    wait_for("the last run", || items() == 13.0 && waiting(0.0));
    site.gate.open();
    check(&scores(&read_answer(&mut none.unwrap()).unwrap().json()), &images(2, 1));
}

#[test]
fn what_is_not_supported_says_so() {
    let site = Site::new("");
    for (method, path, part) in [
        ("GET", "/v2/systemsharedmemory/status", "shared memory is not supported"),
        ("POST", "/v2/cudasharedmemory/region/r/register", "shared memory is not supported"),
        ("GET", "/v2/trace/setting", "trace settings are not supported"),
        ("POST", "/v2/models/digits/trace/setting", "trace settings are not supported"),
        ("GET", "/v2/logging", "log settings are not supported"),
    ] {
        let answer = send(site.address, method, path, &[], b"");
        assert!(answer.status == 501 && answer.error().contains(part), "{path}: {}", answer.text());
    }
    assert_eq!(get(site.address, "/v2/nothing").status, 404);
    assert_eq!(get(site.address, "/v2/repository/nothing").status, 404);
}
