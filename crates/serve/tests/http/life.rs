//! Full queues, clients that go away, deadlines, and the end of a server.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::client::{connect, get, post, read_answer, request};
use crate::site::{Site, body, check, close, expected, images, scores, wait_for};

const INFER: &str = "/v2/models/digits/infer";
const STATUS_499: &str = "fcdcc_serve_requests_total{model=\"digits\",status=\"499\"}";

#[test]
fn a_full_queue_refuses_and_the_others_are_answered() {
    let site = Site::with("queue_length = 2", |options| options.threads = 1);
    site.gate.close();
    let image = images(1, 4);
    let mut streams: Vec<_> = (0..3)
        .map(|index| {
            let mut stream = connect(site.address);
            stream.write_all(&request("POST", INFER, &[], &body(&image))).unwrap();
            // One runs, two wait.
            wait_for("the queue", || site.held() && site.metric("fcdcc_serve_waiting") == f64::from(index));
            stream
        })
        .collect();
    let refused = post(site.address, INFER, &body(&image));
    assert!(refused.status == 429 && refused.error().contains("2 requests wait"), "{}", refused.text());
    // The place of a client that goes away is free again.
    drop(streams.pop());
    wait_for("the client's end", || site.metric(STATUS_499) == 1.0);
    let mut stream = connect(site.address);
    stream.write_all(&request("POST", INFER, &[], &body(&image))).unwrap();
    streams.push(stream);
    site.gate.open();
    for stream in &mut streams {
        check(&scores(&read_answer(stream).unwrap().json()), &image);
    }
}

#[test]
fn a_client_that_goes_away_cancels_its_run() {
    let site = Site::new("");
    site.gate.close();
    let mut stream = connect(site.address);
    stream.write_all(&request("POST", INFER, &[], &body(&images(1, 1)))).unwrap();
    wait_for("the run", || site.held());
    assert_eq!(site.gate.cancelled.load(Ordering::SeqCst), 0);
    drop(stream);
    wait_for("the cancellation", || !site.held() && site.gate.cancelled.load(Ordering::SeqCst) > 0);
    assert_eq!(site.metric(STATUS_499), 1.0);
}

#[test]
fn a_run_goes_on_while_one_of_its_clients_is_there() {
    let site = Site::new("[batching]\nmax_size = 2\nmax_delay = '10s'");
    site.gate.close();
    let image = images(1, 6);
    let mut streams: Vec<_> = (0..2).map(|_| connect(site.address)).collect();
    for stream in &mut streams {
        stream.write_all(&request("POST", INFER, &[], &body(&image))).unwrap();
    }
    wait_for("the run", || site.held());
    drop(streams.pop());
    wait_for("the client's end", || site.metric(STATUS_499) == 1.0);
    assert_eq!(site.gate.cancelled.load(Ordering::SeqCst), 0);
    site.gate.open();
    check(&scores(&read_answer(&mut streams[0]).unwrap().json()), &image);
}

#[test]
fn deadlines_end_requests_and_their_runs() {
    let site = Site::new("timeout = '30s'");
    let image = images(1, 1);
    site.gate.close();
    let text = String::from_utf8(body(&image)).unwrap();
    let hurried = text.replacen('{', r#"{"parameters":{"timeout":200000},"#, 1);
    let started = Instant::now();
    let late = post(site.address, INFER, hurried.as_bytes());
    assert!(late.status == 504 && late.error().contains("no result within 200ms"), "{}", late.text());
    assert!(started.elapsed() < Duration::from_secs(20), "it took {:?}", started.elapsed());
    wait_for("the end of the run", || !site.held());
    assert!(site.gate.cancelled.load(Ordering::SeqCst) > 0);
    site.gate.open();
    // With more time the same request has a result.
    let patient = text.replacen('{', r#"{"parameters":{"timeout":60000000},"#, 1);
    check(&scores(&post(site.address, INFER, patient.as_bytes()).json()), &image);
}

#[test]
fn a_server_that_ends_answers_every_request_that_arrived() {
    let mut site = Site::with("", |options| options.threads = 1);
    site.gate.close();
    let image = images(1, 8);
    let mut streams: Vec<_> = (0..4).map(|_| connect(site.address)).collect();
    let mut idle = connect(site.address);
    for stream in &mut streams {
        stream.write_all(&request("POST", INFER, &[], &body(&image))).unwrap();
    }
    wait_for("the requests", || site.held() && site.metric("fcdcc_serve_waiting") == 3.0);
    let server = site.server.take().unwrap();
    let ending = std::thread::spawn(move || server.drain());
    // The idle connection is closed, and no new one accepted.
    assert!(read_answer(&mut idle).is_none());
    wait_for("the end of the listener", || std::net::TcpStream::connect(site.address).is_err());
    assert!(!ending.is_finished(), "it ended before its requests");
    site.gate.open();
    let expected = expected(&image);
    for stream in &mut streams {
        let answer = read_answer(stream).expect("an answer to a request that was accepted");
        assert!(close(&scores(&answer.json()), &expected), "{}", answer.text());
        // One answer, and then the end.
        assert!(read_answer(stream).is_none());
    }
    assert_eq!(ending.join().unwrap(), 0);
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let mut site = Site::with("", |options| options.drain_timeout = Duration::from_millis(300));
    site.gate.close();
    let mut stream = connect(site.address);
    stream.write_all(&request("POST", INFER, &[], &body(&images(1, 1)))).unwrap();
    wait_for("the run", || site.held());
    let started = Instant::now();
    assert_eq!(site.server.take().unwrap().drain(), 1);
    assert!(started.elapsed() < Duration::from_secs(20), "it took {:?}", started.elapsed());
    assert!(site.gate.cancelled.load(Ordering::SeqCst) > 0);
    assert!(read_answer(&mut stream).is_none());
}

#[test]
fn workers_that_compute_wrongly_make_a_server_unready() {
    let site = Site::new("");
    assert_eq!(get(site.address, "/v2/health/ready").status, 200);
    assert_eq!(get(site.address, "/v2/health/live").status, 200);
    site.gate.close();
    // The result of the last check counts for some seconds, then the workers are asked again, for at most ten.
    wait_for("the check to fail", || {
        let answer = get(site.address, "/v2/health/ready");
        answer.status == 503 && answer.error().contains("the pool does not compute")
    });
    assert_eq!(get(site.address, "/v2/health/live").status, 200);
    site.gate.open();
    wait_for("the check to pass", || get(site.address, "/v2/health/ready").status == 200);
}
