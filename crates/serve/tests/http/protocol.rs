//! What clients of the protocol ask, in JSON and in bytes.

use std::io::Write;

use serde_json::{Value, json};

use crate::client::{connect, get, post, read_answer, request, send};
use crate::site::{PIXELS, Site, body, check, close, expected, images, put, scores, wait_for};

#[test]
fn a_server_describes_itself_and_its_models() {
    let site = Site::new("labels = 'labels.txt'");
    // The labels are missing: the model is not loaded, and everything says so.
    assert_eq!(get(site.address, "/v2/health/live").status, 200);
    let ready = get(site.address, "/v2/health/ready");
    assert!(ready.status == 503 && ready.error().contains("labels.txt"), "{}", ready.text());
    let index = post(site.address, "/v2/repository/index", b"").json();
    assert_eq!(index[0]["state"], "UNAVAILABLE");
    assert!(index[0]["reason"].as_str().unwrap().contains("labels.txt"));
    assert_eq!(post(site.address, "/v2/repository/index", br#"{"ready":true}"#).json(), json!([]));
    assert_eq!(get(site.address, "/v2/models/digits").status, 503);
    // It loads once they are there.
    std::fs::write(site.folder.path().join("digits/1/labels.txt"), "zero\none\n").unwrap();
    let loaded = post(site.address, "/v2/repository/models/digits/load", b"{}");
    assert_eq!((loaded.status, loaded.json()), (200, json!({})));
    for path in [
        "/v2/health/ready",
        "/v2/models/digits/ready",
        "/v2/models/digits/versions/1/ready",
        "/v2",
        "/metrics",
    ] {
        assert_eq!(get(site.address, path).status, 200, "{path}");
    }
    let about = get(site.address, "/v2").json();
    assert_eq!(about["name"], "fcdcc");
    let model = get(site.address, "/v2/models/digits").json();
    let expected = json!({
        "name": "digits", "versions": ["1"], "platform": "onnx_fcdcc",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 32, 32]}],
        "outputs": [{"name": model["outputs"][0]["name"], "datatype": "FP32", "shape": [-1, 10]}],
    });
    assert_eq!(model, expected);
}

#[test]
fn answers_in_json_equal_those_of_the_library() {
    let site = Site::new("");
    for count in [1, 3] {
        let images = images(count, count);
        let answer = post(site.address, "/v2/models/digits/infer", &body(&images));
        let json = answer.json();
        assert_eq!(
            (answer.status, &json["model_name"], &json["model_version"]),
            (200, &json!("digits"), &json!("1"))
        );
        assert_eq!(json["outputs"][0]["shape"], json!([count, 10]));
        check(&scores(&json), &images);
    }
}

/// A request with one image as bytes.
fn binary(images: &[f32], more: &Value) -> (Vec<u8>, String) {
    let bytes: Vec<u8> = images.iter().flat_map(|value| value.to_le_bytes()).collect();
    let input = json!({
        "name": "image", "shape": [images.len() / PIXELS, 1, 32, 32], "datatype": "FP32",
        "parameters": {"binary_data_size": bytes.len()},
    });
    let mut request = json!({ "inputs": [input], "id": "q-1" });
    for (key, value) in more.as_object().unwrap() {
        request[key] = value.clone();
    }
    let mut body = request.to_string().into_bytes();
    let length = body.len().to_string();
    body.extend(bytes);
    (body, length)
}

#[test]
fn tensors_travel_as_bytes_in_both_directions() {
    let site = Site::new("");
    let images = images(2, 5);
    let path = "/v2/models/digits/versions/1/infer";
    let output = get(site.address, "/v2/models/digits").json()["outputs"][0]["name"].clone();
    for more in [
        json!({"parameters": {"binary_data_output": true}}),
        json!({"outputs": [{"name": output, "parameters": {"binary_data": true}}]}),
    ] {
        let (body, length) = binary(&images, &more);
        let answer = send(site.address, "POST", path, &[("Inference-Header-Content-Length", &length)], &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let length: usize = answer.header("Inference-Header-Content-Length").unwrap().parse().unwrap();
        let json: Value = serde_json::from_slice(&answer.body[..length]).unwrap();
        assert_eq!(
            (&json["id"], &json["outputs"][0]["parameters"]["binary_data_size"]),
            (&json!("q-1"), &json!(80))
        );
        let (whole, rest) = answer.body[length..].as_chunks::<4>();
        assert!(rest.is_empty());
        check(&whole.iter().map(|raw| f32::from_le_bytes(*raw)).collect::<Vec<_>>(), &images);
    }
    // Bytes in, JSON out.
    let (body, length) = binary(&images, &json!({}));
    let answer = send(site.address, "POST", path, &[("Inference-Header-Content-Length", &length)], &body);
    assert_eq!(answer.header("Inference-Header-Content-Length"), None);
    check(&scores(&answer.json()), &images);
}

#[test]
fn one_connection_carries_many_requests() {
    let site = Site::new("");
    let mut stream = connect(site.address);
    let (first, second) = (images(1, 1), images(1, 2));
    // Both are sent before the first answer is read.
    for images in [&first, &second] {
        stream.write_all(&request("POST", "/v2/models/digits/infer", &[], &body(images))).unwrap();
    }
    check(&scores(&read_answer(&mut stream).unwrap().json()), &first);
    check(&scores(&read_answer(&mut stream).unwrap().json()), &second);
}

#[test]
fn models_load_and_unload_while_others_serve() {
    let site = Site::new("");
    let image = images(1, 3);
    let expected = expected(&image);
    put(site.folder.path(), "digits", 2, "");
    put(site.folder.path(), "other", 7, "");
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..6 {
                        let answer = post(site.address, "/v2/models/digits/infer", &body(&image));
                        assert!(close(&scores(&answer.json()), &expected), "{}", answer.text());
                    }
                })
            })
            .collect();
        for model in ["digits", "other"] {
            let loaded = post(site.address, &format!("/v2/repository/models/{model}/load"), b"");
            assert_eq!(loaded.status, 200, "{}", loaded.text());
        }
        for client in clients {
            client.join().unwrap();
        }
    });
    let version = |answer: &Value| answer["model_version"].as_str().unwrap().to_owned();
    let infer = |path: &str| post(site.address, path, &body(&image));
    // The newest version answers by default.
    assert_eq!(version(&infer("/v2/models/digits/infer").json()), "2");
    assert_eq!(version(&infer("/v2/models/digits/versions/1/infer").json()), "1");
    assert_eq!(version(&infer("/v2/models/other/infer").json()), "7");
    assert_eq!(post(site.address, "/v2/repository/models/other/unload", b"").status, 200);
    let gone = infer("/v2/models/other/infer");
    assert!(gone.status == 503 && gone.error().contains("unloaded"), "{}", gone.text());
    assert_eq!(infer("/v2/models/digits/infer").status, 200);
    // A model that was unloaded on demand leaves the server ready.
    assert_eq!(get(site.address, "/v2/health/ready").status, 200);
    // A damaged new file does not end the version that serves.
    std::fs::write(site.folder.path().join("digits/2/model.onnx"), "damaged").unwrap();
    let refused = post(site.address, "/v2/repository/models/digits/load", b"");
    assert!(refused.status == 400 && refused.error().contains("model.onnx"), "{}", refused.text());
    assert_eq!(version(&infer("/v2/models/digits/infer").json()), "2");
}

#[test]
fn pictures_are_classified() {
    let site = Site::new("labels = 'labels.txt'\nverify = true\n[picture]\ndivisor = 2");
    std::fs::write(site.folder.path().join("digits/1/labels.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj").unwrap();
    assert_eq!(post(site.address, "/v2/repository/models/digits/load", b"").status, 200);
    let picture: Vec<u8> = (0..PIXELS).map(|index| u8::try_from(index * 13 % 251).unwrap()).collect();
    let answer = post(site.address, "/v2/models/digits/classify?top=3", &picture);
    let json = answer.json();
    let classes = json["classes"].as_array().unwrap();
    let values: Vec<f32> = picture.iter().map(|byte| f32::from(*byte) / 2.0).collect();
    let expected = expected(&values);
    let mut order: Vec<usize> = (0..10).collect();
    order.sort_by(|a, b| expected[*b].total_cmp(&expected[*a]));
    let found: Vec<u64> = classes.iter().map(|class| class["index"].as_u64().unwrap()).collect();
    assert_eq!(found, order[..3].iter().map(|index| *index as u64).collect::<Vec<_>>());
    let label = char::from(b'a' + u8::try_from(order[0]).unwrap()).to_string();
    assert_eq!(classes[0]["label"], json!(label));
    let short = post(site.address, "/v2/models/digits/classify", b"short");
    assert!(short.status == 400 && short.error().contains("5 where 1024"), "{}", short.text());
}

#[test]
fn requests_and_times_are_counted() {
    let site = Site::new("");
    let image = images(1, 1);
    assert_eq!(post(site.address, "/v2/models/digits/infer", &body(&image)).status, 200);
    assert_eq!(post(site.address, "/v2/models/digits/infer", b"{").status, 400);
    assert_eq!(post(site.address, "/v2/models/nothing/infer", b"{}").status, 404);
    wait_for("the counts", || {
        [
            "fcdcc_serve_requests_total{model=\"digits\",status=\"200\"}",
            "fcdcc_serve_requests_total{model=\"digits\",status=\"400\"}",
            "fcdcc_serve_requests_total{model=\"\",status=\"404\"}",
            "fcdcc_serve_queue_seconds_count{model=\"digits\"}",
            "fcdcc_serve_compute_seconds_count{model=\"digits\"}",
            "fcdcc_serve_run_items_sum{model=\"digits\"}",
        ]
        .iter()
        .all(|series| site.metric(series) == 1.0)
    });
    // The pool's metrics are on the same page.
    assert!(get(site.address, "/metrics").text().contains("fcdcc_workers{"));
}
