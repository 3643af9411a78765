//! Thousands of damaged bodies and a thousand slow clients: other clients are served meanwhile.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::client::{LIMIT, connect, get, post, read_answer, request};
use crate::site::{Site, body, close, expected, images, scores, wait_for};

const INFER: &str = "/v2/models/digits/infer";

/// Damaged requests that are sent.
const DAMAGED: usize = 3000;

/// What memory may grow by: plans for batch sizes that damaged requests ask for, and what the allocator keeps.
const GROWTH: usize = 64 << 20;

/// A number of /proc/self/status, such as the kilobytes of resident memory.
fn status(key: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn resident() -> usize {
    status("VmRSS:") << 10
}

/// A request that the server answers with success.
struct Whole {
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// One of each kind of request with a body.
fn whole() -> Vec<Whole> {
    let image = images(1, 1);
    let json = body(&image);
    let bytes: Vec<u8> = image.iter().flat_map(|value| value.to_le_bytes()).collect();
    let head = r#"{"id":"a","inputs":[{"name":"image","shape":[1,1,32,32],"datatype":"FP32","parameters":{"binary_data_size":4096}}],"outputs":[{"name":"scores","parameters":{"binary_data":true,"classification":3}}],"parameters":{"timeout":20000000,"priority":1}}"#;
    // The output's name is the model's.
    let head = head.replace("\"scores\"", &format!("{:?}", output_name()));
    let length = ("Inference-Header-Content-Length", head.len().to_string());
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&json).unwrap();
    vec![
        Whole { path: INFER, headers: Vec::new(), body: json },
        Whole { path: INFER, headers: vec![length], body: [head.into_bytes(), bytes].concat() },
        Whole {
            path: INFER,
            headers: vec![("Content-Encoding", "gzip".to_owned())],
            body: packed.finish().unwrap(),
        },
        Whole { path: "/v2/models/digits/classify", headers: Vec::new(), body: vec![7; 1024] },
        Whole { path: "/v2/repository/index", headers: Vec::new(), body: br#"{"ready": true}"#.to_vec() },
    ]
}

fn output_name() -> String {
    fcdcc::model::Model::load(crate::site::lenet()).unwrap().outputs()[0].clone()
}

fn below(random: &mut ChaCha8Rng, end: usize) -> usize {
    usize::try_from(random.next_u64()).unwrap() % end.max(1)
}

/// Damages a body in one to three ways.
fn damage(body: &mut Vec<u8>, other: &[u8], random: &mut ChaCha8Rng) {
    const TEXTS: [&[u8]; 12] = [
        b"-1",
        b"1e999",
        b"18446744073709551616",
        b"null",
        b"[[[[[[",
        b"\"",
        b"\\ud800",
        b"\xff\xfe",
        b"{}",
        b",",
        b"0.0",
        b"FP16",
    ];
    for _ in 0..=below(random, 3) {
        let at = below(random, body.len());
        let to = (at + 1 + below(random, 40)).min(body.len());
        match below(random, 7) {
            0 => {
                for byte in body.iter_mut().skip(at).take(1) {
                    *byte ^= 1 << below(random, 8);
                }
            }
            1 => body.truncate(at),
            2 => drop(body.drain(at..to)),
            3 => drop(body.splice(at..at, TEXTS[below(random, TEXTS.len())].iter().copied())),
            4 => drop(body.splice(at..to, TEXTS[below(random, TEXTS.len())].iter().copied())),
            5 => {
                let again = body[at..to].to_vec();
                drop(body.splice(at..at, again));
            }
            _ => {
                let from = below(random, other.len());
                drop(body.splice(at..to, other[from..(from + 64).min(other.len())].iter().copied()));
            }
        }
    }
}

#[test]
fn damaged_bodies_are_answered_and_nothing_grows() {
    let site = Site::new("max_shapes = 2");
    let whole = whole();
    for one in &whole {
        let headers: Vec<(&str, &str)> =
            one.headers.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let mut stream = connect(site.address);
        stream.write_all(&request("POST", one.path, &headers, &one.body)).unwrap();
        let answer = read_answer(&mut stream).expect("an answer");
        assert_eq!(answer.status, 200, "{}: {}", one.path, answer.text());
    }
    let mut random = ChaCha8Rng::seed_from_u64(21);
    let (mut stream, mut early) = (connect(site.address), 0);
    let mut by_kind = [0; 2];
    for round in 0..DAMAGED {
        let one = &whole[round % whole.len()];
        let other = &whole[below(&mut random, whole.len())].body;
        let mut body = one.body.clone();
        damage(&mut body, other, &mut random);
        let mut headers: Vec<(&str, &str)> =
            one.headers.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let length = below(&mut random, 2 * body.len() + 1).to_string();
        if below(&mut random, 8) == 0 {
            headers.retain(|(name, _)| *name != "Inference-Header-Content-Length");
            headers.push(("Inference-Header-Content-Length", &length));
        }
        stream.write_all(&request("POST", one.path, &headers, &body)).unwrap();
        let answer = read_answer(&mut stream).unwrap_or_else(|| panic!("round {round}: no answer"));
        let said = || format!("round {round}, {}: {} {}", one.path, answer.status, answer.text());
        match answer.status {
            200 => by_kind[0] += 1,
            400 | 404 | 413 | 415 => {
                assert!(!answer.error().is_empty(), "{}", said());
                by_kind[1] += 1;
            }
            _ => panic!("{}", said()),
        }
        if answer.header("connection") == Some("close") {
            stream = connect(site.address);
        }
        if round == DAMAGED / 3 {
            early = resident();
        }
    }
    let grown = resident().saturating_sub(early);
    assert!(grown < GROWTH, "memory grew by {grown} bytes");
    // Some damage changes numbers only, and most is refused.
    assert!(by_kind[0] > DAMAGED / 50 && by_kind[1] > DAMAGED / 3, "{by_kind:?}");
    let image = images(1, 1);
    assert!(close(&scores(&post(site.address, INFER, &body(&image)).json()), &expected(&image)));
}

#[test]
fn what_is_not_http_2_ends_its_connection_alone() {
    let site = Site::with("", |options| options.head_timeout = Duration::from_secs(2));
    let mut random = ChaCha8Rng::seed_from_u64(22);
    for round in 0..300 {
        let mut bytes = vec![0; 1 + below(&mut random, 400)];
        random.fill_bytes(&mut bytes);
        if round % 3 > 0 {
            // A preface, and frames of any type with lengths that are small enough to be read on.
            let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
            for chunk in bytes.chunks(40) {
                let length =
                    u8::try_from(chunk.len() - usize::from(round % 3 == 2 && chunk.len() > 8)).unwrap();
                let kind = u8::try_from(below(&mut random, 11)).unwrap();
                frames.extend([0, 0, length, kind, chunk[0] & 0x2d, 0, 0, 0, chunk[0] & 3]);
                frames.extend(chunk);
            }
            bytes = frames;
        }
        let mut stream = connect(site.grpc);
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // Whatever it says, it closes.
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(said.len() < 1 << 16, "round {round}");
    }
    let image = images(1, 1);
    assert!(close(&scores(&post(site.address, INFER, &body(&image)).json()), &expected(&image)));
}

/// How many slow clients this process may have: each takes a file here and one in the server, which is the same process.
fn slow_clients() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(200).min(2000) / 2
}

/// Connects, and sends the beginning of a request, of its body, or nothing.
fn slow_client(address: SocketAddr, index: usize) -> TcpStream {
    let mut stream = connect(address);
    match index % 3 {
        0 => stream.write_all(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: slow\r\nX-Slow: ").unwrap(),
        1 => {
            let head = format!("POST {INFER} HTTP/1.1\r\nHost: slow\r\nContent-Length: 5000\r\n\r\n{{");
            stream.write_all(head.as_bytes()).unwrap();
        }
        _ => {}
    }
    stream
}

#[test]
fn a_thousand_slow_clients_hold_up_nobody() {
    let patience = Duration::from_secs(8);
    let site = Site::with("", |options| {
        options.head_timeout = patience;
        options.body_timeout = patience;
    });
    let image = images(1, 1);
    let (sent, want) = (body(&image), expected(&image));
    let right = || close(&scores(&post(site.address, INFER, &sent).json()), &want);
    assert!(right());
    let (threads, memory) = (status("Threads:"), resident());
    let began = Instant::now();
    let count = slow_clients();
    assert!(count >= 300, "this test needs 800 open files");
    let mut slow: Vec<TcpStream> = (0..count).map(|index| slow_client(site.address, index)).collect();
    let connected = began.elapsed();
    // A connection that finds the queue of new connections full is tried again after a second.
    assert!(connected < Duration::from_secs(4), "{connected:?} for {count} connections");
    // The slow clients send a byte now and then. Between these bytes another client is served.
    let mut served = 0;
    while began.elapsed() < connected + patience / 2 {
        for stream in slow.iter_mut().skip(served % 7).step_by(7) {
            let _ = stream.write_all(b"1");
        }
        assert!(right(), "after {served} right answers");
        served += 1;
    }
    assert!(served > 3, "{served} answers in {:?}, after {connected:?} of connecting", patience / 2);
    // The runtime may have started one of the few threads that it has for other work.
    let more = status("Threads:") - threads;
    assert!(more <= 4, "{more} threads for {count} slow clients");
    let grown = resident().saturating_sub(memory);
    assert!(grown < count * (64 << 10), "{grown} bytes for {count} clients");
    // Each is closed once its time is over, bytes or not.
    for (index, stream) in slow.iter_mut().enumerate() {
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let text = String::from_utf8_lossy(&rest);
        assert!(ended.is_ok() || rest.is_empty(), "{index}: {ended:?}");
        assert!(!text.contains("200 OK"), "{index}: {text}");
    }
    let longest = began.elapsed();
    assert!(longest < connected + patience * 3, "{longest:?}");
    drop(slow);
    wait_for("the end of their connections", || get(site.address, "/v2/health/live").status == 200);
    assert!(right() && longest < LIMIT);
}
