//! The load generator, against a real server and against one that stalls, refuses and lies as it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fcdcc::model::Tensor;
use fcdcc_serve::load::{self, Arrivals, LoadOptions, LoadOutcome, Outcome, Sample};
use ndarray::ArrayD;

use crate::client::connect;
use crate::site::{Site, expected, images};

fn options(address: SocketAddr) -> LoadOptions {
    LoadOptions {
        url: format!("http://{address}"),
        model: "digits".to_owned(),
        inputs: Vec::new(),
        expected: None,
        arrivals: Arrivals::Constant,
        rate: 100.0,
        duration: Duration::from_secs(2),
        connections: 8,
        limit: Duration::from_secs(20),
        seed: 3,
        token: None,
        authority: None,
    }
}

fn count(outcome: &LoadOutcome, of: Outcome) -> usize {
    outcome.samples.iter().filter(|sample| sample.outcome == of).count()
}

/// The `q`-quantile of times in milliseconds.
fn quantile(outcome: &LoadOutcome, time: fn(&Sample) -> Duration, q: f64) -> f64 {
    let mut times: Vec<Duration> = outcome.samples.iter().map(time).collect();
    times.sort();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let at = (q * (times.len() - 1) as f64) as usize;
    times[at].as_secs_f64() * 1e3
}

#[test]
fn a_real_server_answers_every_request_rightly() {
    let site = Site::new("");
    let image = images(1, 5);
    let scores = ArrayD::from_shape_vec(vec![1, 10], expected(&image)).unwrap();
    let input = ArrayD::from_shape_vec(vec![1, 1, 32, 32], image).unwrap();
    let given = LoadOptions {
        inputs: vec![input.into()],
        expected: Some(scores.clone().into()),
        arrivals: Arrivals::Poisson,
        ..options(site.address)
    };
    let mut seen = (0, 0);
    let outcome = load::run(&given, &mut |done, total| seen = (done, total)).unwrap();
    let sent = outcome.samples.len();
    assert!((120..300).contains(&sent) && seen == (sent, sent), "{sent} {seen:?}");
    assert_eq!(count(&outcome, Outcome::Right), sent);
    assert!(outcome.distance <= load::AGREES && outcome.version == "1", "{}", outcome.distance);
    assert_eq!(outcome.inputs, "image [1, 1, 32, 32]");
    // Negative control: another expected output.
    let other = LoadOptions { expected: Some((scores + 1.0).into()), ..given.clone() };
    assert!(load::run(&other, &mut |_, _| {}).unwrap_err().to_string().contains("first answer"));
    let missing = LoadOptions { model: "nothing".to_owned(), ..options(site.address) };
    assert!(load::run(&missing, &mut |_, _| {}).unwrap_err().to_string().contains("there is no model"));
    let random = LoadOptions { duration: Duration::from_millis(200), ..options(site.address) };
    let outcome = load::run(&random, &mut |_, _| {}).unwrap();
    assert_eq!(count(&outcome, Outcome::Right), 20);
}

/// How a stand-in answers a request.
#[derive(Clone, Copy, Debug)]
enum Reply {
    After(u64),
    Wrong,
    Busy,
    Close,
}

/// A server whose n-th inference, counted from 0, is answered as `how` says.
fn stand_in(how: impl Fn(usize) -> Reply + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (how, number) = (Arc::new(how), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (how, number) = (Arc::clone(&how), Arc::clone(&number));
            std::thread::spawn(move || while answer(&stream, &*how, &number).is_some() {});
        }
    });
    address
}

fn answer(mut stream: &TcpStream, how: &dyn Fn(usize) -> Reply, number: &AtomicUsize) -> Option<()> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if bytes.len() >= end + 4 + length.unwrap_or(0) {
                break head;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend(&chunk[..count]),
        }
    };
    let reply = if head.starts_with("GET") {
        let json = r#"{"name":"digits","inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]}]}"#;
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{json}", json.len()).into_bytes()
    } else {
        let how = how(number.fetch_add(1, Ordering::SeqCst));
        match how {
            Reply::Close => return None,
            Reply::Busy => b"HTTP/1.1 429 Busy\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
            Reply::After(_) | Reply::Wrong => {
                if let Reply::After(ms) = how {
                    std::thread::sleep(Duration::from_millis(ms));
                }
                let value = if matches!(how, Reply::Wrong) { 2.0f32 } else { 1.0 };
                let json = r#"{"model_name":"digits","model_version":"1","outputs":[{"name":"y","datatype":"FP32",
                    "shape":[1],"parameters":{"binary_data_size":4}}]}"#;
                let head = format!(
                    "HTTP/1.1 200 OK\r\ninference-header-content-length: {}\r\ncontent-length: {}\r\n\r\n{json}",
                    json.len(),
                    json.len() + 4
                );
                [head.as_bytes(), &value.to_le_bytes()].concat()
            }
        }
    };
    stream.write_all(&reply).ok()
}

#[test]
fn a_stall_delays_the_requests_that_arrive_meanwhile() {
    // The first request is not part of the load; the 20th stalls for a second.
    let address = stand_in(|number| if number == 20 { Reply::After(1000) } else { Reply::After(0) });
    let one = LoadOptions { connections: 1, ..options(address) };
    let outcome = load::run(&one, &mut |_, _| {}).unwrap();
    assert_eq!(count(&outcome, Outcome::Right), 200);
    // About half of the requests arrive during the stall and wait 500 ms on average; only one of 200 was *sent* then.
    let (seen, sent) = (quantile(&outcome, Sample::latency, 0.9), quantile(&outcome, Sample::service, 0.9));
    assert!(seen > 500.0, "{seen} ms");
    assert!(sent < 100.0, "a client that waits for answers would have seen {sent} ms");
    // Negative control: without a stall the two agree.
    let calm = LoadOptions { connections: 1, ..options(stand_in(|_| Reply::After(0))) };
    let calm = load::run(&calm, &mut |_, _| {}).unwrap();
    assert!(quantile(&calm, Sample::latency, 0.9) < 100.0);
}

#[test]
fn every_request_is_counted_by_its_outcome() {
    let address = stand_in(|number| match number % 10 {
        3 => Reply::Busy,
        5 => Reply::Wrong,
        7 => Reply::Close,
        9 => Reply::After(1500),
        _ => Reply::After(0),
    });
    let hurried = LoadOptions { limit: Duration::from_millis(700), ..options(address) };
    let outcome = load::run(&hurried, &mut |_, _| {}).unwrap();
    let of = |outcome_of| count(&outcome, outcome_of);
    assert_eq!(outcome.samples.len(), 200);
    for (what, number) in [
        ("busy", of(Outcome::Status(429))),
        ("wrong", of(Outcome::Wrong)),
        ("broken", of(Outcome::Broken)),
        ("timed out", of(Outcome::TimedOut)),
    ] {
        assert!((15..=25).contains(&number), "{number} {what}");
    }
    assert_eq!(outcome.distance, 1.0);
    assert!(
        outcome
            .samples
            .iter()
            .all(|sample| sample.ended >= sample.started && sample.started >= sample.intended)
    );
    let late = outcome.samples.iter().filter(|sample| sample.outcome == Outcome::TimedOut);
    assert!(late.map(Sample::service).all(|time| time >= Duration::from_millis(690)));
}

#[test]
fn options_out_of_bounds_are_refused_before_anything_is_sent() {
    let address = stand_in(|_| Reply::After(0));
    let fine = options(address);
    let rows = [
        (LoadOptions { rate: 0.0, ..fine.clone() }, "rate of requests is 0"),
        (LoadOptions { rate: f64::NAN, ..fine.clone() }, "rate of requests"),
        (LoadOptions { rate: 1e9, ..fine.clone() }, "number of requests"),
        (LoadOptions { connections: 0, ..fine.clone() }, "number of connections is 0"),
        (LoadOptions { limit: Duration::ZERO, ..fine.clone() }, "time for an answer"),
        (LoadOptions { duration: Duration::ZERO, ..fine.clone() }, "no request arrives"),
        (LoadOptions { inputs: vec![Tensor::from(ArrayD::<f64>::ones(vec![1, 2]))], ..fine.clone() }, "FP64"),
        (
            LoadOptions { url: "http://127.0.0.1:1".to_owned(), ..fine.clone() },
            "the server at http://127.0.0.1:1",
        ),
    ];
    for (options, part) in rows {
        let error = load::run(&options, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    // The stand-in itself works.
    drop(connect(address));
    let short = LoadOptions { duration: Duration::from_millis(50), ..fine };
    assert_eq!(load::run(&short, &mut |_, _| {}).unwrap().samples.len(), 5);
}
