//! Requests that are refused: malformed, too large, too slow, without a token, or for something that is not there.

use std::io::{Read, Write};
use std::time::Duration;

use fcdcc_serve::{Server, ServerOptions, Tokens};

use crate::client::{Answer, connect, get, post, read_answer, send};
use crate::site::{Site, body, close, expected, images, scores};

const INFER: &str = "/v2/models/digits/infer";

/// Whether the server still answers correctly.
fn works(site: &Site) {
    let image = images(1, 1);
    let answer = post(site.address, INFER, &body(&image));
    assert!(close(&scores(&answer.json()), &expected(&image)), "{}", answer.text());
}

#[test]
fn malformed_bodies_are_refused_and_nothing_breaks() {
    let site = Site::new("");
    let input =
        |rest: &str| format!(r#"{{"inputs":[{{"name":"image","datatype":"FP32",{rest}}}]}}"#).into_bytes();
    let deep = format!(
        r#"{{"inputs":[{{"name":"image","shape":[1],"datatype":"FP32","data":{}"#,
        "[".repeat(1 << 20)
    );
    let rows: Vec<(Vec<u8>, Option<&str>, &str)> = vec![
        (b"".to_vec(), None, "not an inference request"),
        (b"{\"inputs\": [".to_vec(), None, "not an inference request"),
        (vec![0xff; 100], None, "not an inference request"),
        (deep.into_bytes(), None, "recursion limit"),
        (b"{\"inputs\": []}".to_vec(), None, "0 inputs where 1 were expected: send image"),
        (
            input(r#""shape":[1,1,32,32],"data":[1,2,3]"#),
            None,
            "3 elements where its shape [1, 1, 32, 32] needs 1024",
        ),
        (input(r#""shape":[1,1,31,32],"data":[0]"#), None, "needs 992"),
        (input(r#""shape":[0,1,32,32],"data":[]"#), None, "at least 1"),
        (input(r#""shape":[4294967296,4294967296,4294967296,1],"data":[]"#), None, "no machine"),
        (input(r#""shape":[1],"data":[1]"#), None, "shape [1] where [-1, 1, 32, 32] was expected"),
        (input(r#""shape":[1],"parameters":{"binary_data_size":4}"#), None, "0 bytes are left"),
        (
            input(r#""shape":[1],"parameters":{"binary_data_size":18446744073709551615}"#),
            None,
            "0 bytes are left",
        ),
        (b"{}".to_vec(), Some("3"), "is 3 where the body has 2 bytes"),
        (b"{}".to_vec(), Some("x"), "Inference-Header-Content-Length"),
        (b"{\"inputs\":[]}12".to_vec(), Some("13"), "2 bytes follow"),
        (
            br#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}"#.to_vec(),
            None,
            "image is missing",
        ),
        (
            br#"{"inputs":[{"name":"image","shape":[1],"datatype":"INT8","data":[1]}]}"#.to_vec(),
            None,
            "is INT8 where FP32",
        ),
    ];
    for (body, length, part) in rows {
        let headers: Vec<(&str, &str)> =
            length.iter().map(|length| ("Inference-Header-Content-Length", *length)).collect();
        let answer = send(site.address, "POST", INFER, &headers, &body);
        let error = answer.error();
        assert!(answer.status == 400 && error.contains(part), "{part}: {} {error}", answer.status);
    }
    let unknown = String::from_utf8(body(&images(1, 1))).unwrap();
    let unknown = unknown.replacen('{', r#"{"outputs":[{"name":"nothing"}],"#, 1);
    assert!(post(site.address, INFER, unknown.as_bytes()).error().contains("no output nothing"));
    works(&site);
}

#[test]
fn a_nan_is_refused_or_computed_and_takes_no_other_request_with_it() {
    let site = Site::new("[batching]\nmax_size = 2\nmax_delay = '100ms'");
    let mut image = images(1, 1);
    image[7] = f32::NAN;
    let bytes: Vec<u8> = image.iter().flat_map(|value| value.to_le_bytes()).collect();
    let json = r#"{"inputs":[{"name":"image","shape":[1,1,32,32],"datatype":"FP32","parameters":{"binary_data_size":4096}}]}"#;
    let mut body = json.as_bytes().to_vec();
    body.extend(bytes);
    let length = json.len().to_string();
    std::thread::scope(|scope| {
        let bad = scope.spawn(|| {
            send(site.address, "POST", INFER, &[("Inference-Header-Content-Length", &length)], &body)
        });
        works(&site);
        let bad: Answer = bad.join().unwrap();
        assert!(bad.status == 400 && bad.error().contains("NaN"), "{}: {}", bad.status, bad.text());
    });
}

#[test]
fn what_is_not_there_is_not_found() {
    let site = Site::new("");
    for (method, path, status, part) in [
        ("GET", "/v2/models/nothing", 404, "there is no model \"nothing\": there are digits"),
        ("GET", "/v2/models/digits/versions/2", 404, "no version \"2\": it has 1"),
        ("POST", "/v2/models/digits/versions/x/infer", 404, "no version"),
        ("POST", "/v2/repository/models/..%2F..%2Fetc/load", 404, "no model"),
        ("GET", "/nothing", 404, "nothing at"),
        ("GET", INFER, 405, "does not answer to GET"),
        ("POST", "/v2/repository/models/nothing/unload", 404, "no model"),
    ] {
        let answer = send(site.address, method, path, &[], b"");
        assert!(answer.status == status && answer.error().contains(part), "{path}: {}", answer.text());
    }
    let own_file = br#"{"parameters":{"file:1/model.onnx":"AAAA"}}"#;
    assert_eq!(post(site.address, "/v2/repository/models/digits/load", own_file).status, 400);
}

#[test]
fn bodies_and_heads_have_limits() {
    let site = Site::with("", |options| {
        options.max_body_bytes = 100_000;
        options.body_timeout = Duration::from_millis(300);
        options.head_timeout = Duration::from_millis(300);
    });
    // Refused by its announced length, before a byte of it is sent.
    let mut stream = connect(site.address);
    stream
        .write_all(format!("POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n").as_bytes())
        .unwrap();
    let answer = read_answer(&mut stream).unwrap();
    assert!(answer.status == 413 && answer.error().contains("100000 bytes"), "{}", answer.text());
    // The same without an announced length.
    let mut stream = connect(site.address);
    let mut chunked =
        format!("POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in [10_000; 10].into_iter().chain([1]) {
        chunked.extend(format!("{chunk:x}\r\n").into_bytes());
        chunked.extend(vec![b' '; chunk]);
        chunked.extend(b"\r\n");
    }
    stream.write_all(&chunked).unwrap();
    assert_eq!(read_answer(&mut stream).unwrap().status, 413);
    // A body that does not come, and a head that does not end.
    let mut stream = connect(site.address);
    stream
        .write_all(format!("POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{").as_bytes())
        .unwrap();
    assert_eq!(read_answer(&mut stream).unwrap().status, 408);
    let mut stream = connect(site.address);
    stream.write_all(b"GET /v2 HTTP/1.1\r\nHost: x\r\n").unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"), "a head without end was answered");
    // Too many header lines.
    let many: Vec<(String, String)> = (0..100).map(|index| (format!("x-{index}"), "1".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(send(site.address, "GET", "/v2", &many, b"").status, 431);
    let packed = send(site.address, "POST", INFER, &[("Content-Encoding", "br")], b"x");
    assert_eq!(packed.status, 415);
    works(&site);
}

#[test]
fn tokens_open_everything_but_health_and_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens");
    std::fs::write(&path, "correct-horse-battery\n").unwrap();
    let site = Site::with("", |options| options.tokens = Some(Tokens::read(&path).unwrap()));
    for open in ["/v2/health/live", "/v2/health/ready", "/metrics"] {
        assert_eq!(get(site.address, open).status, 200, "{open}");
    }
    for path in ["/v2", "/v2/models/digits", "/nothing"] {
        let answer = get(site.address, path);
        assert!(answer.status == 401 && answer.header("WWW-Authenticate") == Some("Bearer"), "{path}");
        let wrong =
            send(site.address, "GET", path, &[("Authorization", "Bearer correct-horse-batterx")], b"");
        assert_eq!(wrong.status, 401, "{path}");
    }
    let image = images(1, 1);
    assert_eq!(post(site.address, INFER, &body(&image)).status, 401);
    let right = ("Authorization", "Bearer correct-horse-battery");
    assert_eq!(send(site.address, "POST", INFER, &[right], &body(&image)).status, 200);
}

#[test]
fn addresses_beyond_this_machine_need_tokens_or_consent() {
    let site = Site::new("");
    let start = |change: &dyn Fn(&mut ServerOptions)| {
        let pool = fcdcc::Pool::new(fcdcc::CpuWorker::fleet(2)).unwrap();
        let mut options = ServerOptions {
            sources: vec![site.folder.path().to_owned()],
            address: "0.0.0.0:0".to_owned(),
            ..ServerOptions::default()
        };
        change(&mut options);
        let source = fcdcc::telemetry::Master::new(&pool);
        let engine = fcdcc_serve::Engine { pool, options: fcdcc::ModelOptions::default() };
        Server::start(&options, &engine, source, None).map(|server| server.address())
    };
    let refused = start(&|_| {}).unwrap_err().to_string();
    assert!(refused.contains("0.0.0.0:0: give a file of tokens"), "{refused}");
    let refused = start(&|options| {
        options.address = "127.0.0.1:0".to_owned();
        options.grpc = Some("0.0.0.0:0".to_owned());
    });
    assert!(refused.unwrap_err().to_string().contains("0.0.0.0:0: give a file of tokens"));
    assert!(start(&|options| options.insecure = true).is_ok());
    let rows: [(&dyn Fn(&mut ServerOptions), &str); 5] = [
        (&|options| options.grpc = Some(site.grpc.to_string()), "is not available"),
        (&|options| options.address = "nowhere".to_owned(), "address is \"nowhere\""),
        (&|options| options.address = site.address.to_string(), "is not available"),
        (&|options| options.threads = 0, "number of threads is 0"),
        (&|options| options.sources = vec!["missing".into()], "neither a model file nor a repository"),
    ];
    for (change, part) in rows {
        let error = start(&|options| {
            options.insecure = true;
            change(options);
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
