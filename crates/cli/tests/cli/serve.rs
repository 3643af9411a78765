//! `fcdcc serve` as a process: what it prints, what it answers, and how signals end it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fcdcc_test_support::binary::repository;

/// The longest wait for anything.
const LIMIT: Duration = Duration::from_mins(2);

struct Running {
    child: Child,
    address: String,
    /// The lines on stderr.
    lines: mpsc::Receiver<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(stderr: ChildStderr) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            // The test may not listen any more.
            let _ = sender.send(line);
        }
    });
    lines
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let model = repository().join("assets/digits/lenet5.onnx");
        let mut child = Command::new(env!("CARGO_BIN_EXE_fcdcc"))
            .arg("serve")
            .arg(model)
            .args([
                "--backend",
                "cpu",
                "--workers",
                "4",
                "--calibrate",
                "never",
                "--http",
                "127.0.0.1:0",
                "--grpc",
                "127.0.0.1:0",
            ])
            .args(arguments)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let lines = lines_of(child.stderr.take().unwrap());
        let mut running = Self { child, address: String::new(), lines };
        let line = running.line("serving lenet5 (version 1) at http://");
        assert!(line.contains("; gRPC at 127.0.0.1:"), "{line}");
        let address = line.split("http://").nth(1).unwrap().split(';').next().unwrap();
        address.clone_into(&mut running.address);
        running
    }

    /// The next line on stderr with this text.
    fn line(&self, text: &str) -> String {
        loop {
            let line =
                self.lines.recv_timeout(LIMIT).unwrap_or_else(|e| panic!("no line with {text:?}: {e}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn send(&self, request: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        stream
    }

    /// Waits until a request runs: the server prints nothing of single requests, but counts them.
    fn wait_for_a_run(&self) {
        let end = Instant::now() + LIMIT;
        loop {
            let page = read(self.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
            if page.contains("fcdcc_serve_queue_seconds_count{model=\"lenet5\"} 1") {
                return;
            }
            assert!(Instant::now() < end, "{page}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(name).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// The exit status, once the process ends.
    fn ended(&mut self) -> i32 {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < end, "it did not end within {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn infer() -> Vec<u8> {
    let data = vec!["0.5"; 1024].join(",");
    let body =
        format!(r#"{{"inputs":[{{"name":"image","shape":[1,1,32,32],"datatype":"FP32","data":[{data}]}}]}}"#);
    let path = "/v2/models/lenet5/infer";
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

fn read(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn a_signal_ends_it_after_the_requests_in_progress() {
    // Each of the layers takes a while, so that the signal comes during the request.
    let mut running = Running::start(&["--fault", "all:delay=500ms"]);
    let stream = running.send(&infer());
    running.wait_for_a_run();
    running.signal("-TERM");
    let answer = read(stream);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"outputs\""), "{answer}");
    assert_eq!(running.ended(), 0);
    assert!(TcpStream::connect(&running.address).is_err());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut running =
        Running::start(&["--fault", "all:delay=5s", "--deadline", "1m", "--on-shortfall", "local"]);
    let _stream = running.send(&infer());
    running.wait_for_a_run();
    running.signal("-INT");
    running.line("ending: requests in progress are answered first");
    running.signal("-INT");
    assert_eq!(running.ended(), 1);
}

#[cfg(unix)]
#[test]
fn a_hangup_has_it_read_tokens_again_and_open_its_log_again() {
    let folder = fcdcc_test_support::folder::Folder::empty();
    std::fs::write(folder.path("tokens"), "first-token-of-many\n").unwrap();
    let text = |name: &str| folder.path(name).display().to_string();
    let mut running = Running::start(&["--token-file", &text("tokens"), "--access-log", &text("log")]);
    let status = |running: &Running, token: &str| {
        let request = format!(
            "GET /v2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        read(running.send(request.as_bytes())).split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(status(&running, "first-token-of-many"), "200");
    std::fs::write(folder.path("tokens"), "second-token-of-many\n").unwrap();
    std::fs::rename(folder.path("log"), folder.path("log.1")).unwrap();
    running.signal("-HUP");
    running.line("those on disk now");
    assert_eq!(status(&running, "first-token-of-many"), "401");
    assert_eq!(status(&running, "second-token-of-many"), "200");
    std::fs::write(folder.path("tokens"), "short\n").unwrap();
    running.signal("-HUP");
    running.line("is no token");
    assert_eq!(status(&running, "second-token-of-many"), "200");
    running.signal("-TERM");
    assert_eq!(running.ended(), 0);
    let statuses = |name: &str| -> Vec<u64> {
        let text = std::fs::read_to_string(folder.path(name)).unwrap();
        let status =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["status"].as_u64().unwrap();
        text.lines().map(status).collect()
    };
    assert_eq!((statuses("log.1"), statuses("log")), (vec![200], vec![401, 200, 200]));
}

#[test]
fn a_load_is_measured_and_its_report_has_every_request() {
    let folder = fcdcc_test_support::folder::Folder::empty();
    let running = Running::start(&[]);
    let address = &running.address;
    let said = folder.run(&format!(
        "bench --serve http://{address} --model lenet5 --rate 100 --duration 1s --arrivals constant --output out \
         --report r.json --seed 4"
    ));
    assert_eq!(said.status, 0, "{}", said.err);
    let json = std::fs::read_to_string(folder.path("out/bench.json")).unwrap();
    let report: fcdcc_bench::load::LoadReport = serde_json::from_str(&json).unwrap();
    assert_eq!(json, std::fs::read_to_string(folder.path("r.json")).unwrap());
    assert_eq!((report.outcomes.sent, report.outcomes.right, report.latencies_ms.len()), (100, 100, 100));
    assert_eq!((report.load.inputs.as_str(), report.setting.seed), ("image [1, 1, 32, 32]", 4));
    assert!(report.latency.p50.unwrap() > 0.0 && said.out.contains("right 100"), "{}", said.out);
    assert!(
        std::fs::read_to_string(folder.path("out/report.html")).unwrap().contains("Load on model lenet5")
    );
    let rows = [
        ("bench --serve http://127.0.0.1:1 --model m".to_owned(), 2, "the server at http://127.0.0.1:1"),
        (format!("bench --serve http://{address}"), 2, "--model"),
        (format!("bench --serve http://{address} --model lenet5 --rate -1"), 2, "rate"),
        (format!("bench --serve http://{address} --model lenet5 --arrivals often"), 2, "poisson or constant"),
        (format!("bench --serve http://{address} --model lenet5 --virtual"), 2, "--virtual"),
        ("bench --rate 5".to_owned(), 2, "--serve"),
    ];
    for (command, status, part) in rows {
        let said = folder.run(&command);
        assert!(said.status == status && said.err.contains(part), "{command}: {} {}", said.status, said.err);
    }
}

#[test]
fn pictures_are_classified_as_run_does() {
    let folder = fcdcc_test_support::folder::Folder::empty();
    let demo = Command::new(env!("CARGO_BIN_EXE_fcdcc"))
        .args(["demo", "--quiet", "--write"])
        .arg(folder.path("."))
        .status()
        .unwrap();
    assert!(demo.success());
    let picture = std::fs::read(folder.path("digit.png")).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_fcdcc"))
        .arg("run")
        .arg(repository().join("assets/digits/lenet5.onnx"))
        .args(["--quiet", "--backend", "cpu", "--calibrate", "never", "--top", "1", "--input"])
        .arg(folder.path("digit.png"))
        .output()
        .unwrap();
    let line = String::from_utf8(run.stdout).unwrap();
    let class: usize = line.split("class ").nth(1).unwrap().trim().parse().unwrap();
    let running = Running::start(&[]);
    let ask = |picture: &[u8]| {
        let path = "/v2/models/lenet5/classify?top=1";
        let length = picture.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        read(running.send(&[head.as_bytes(), picture].concat()))
    };
    let answer = ask(&picture);
    assert!(answer.contains(&format!("\"index\":{class},")), "{line}{answer}");
    let damaged = ask(&picture[..picture.len() / 2]);
    assert!(damaged.starts_with("HTTP/1.1 400") && damaged.contains("cannot be decoded"), "{damaged}");
    let text = ask(b"no picture");
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("is not a picture"), "{text}");
}

#[test]
fn what_cannot_be_served_is_refused_with_one_line() {
    let folder = fcdcc_test_support::folder::Folder::empty();
    std::fs::write(folder.path("damaged.onnx"), "damaged").unwrap();
    std::fs::write(folder.path("short"), "short\n").unwrap();
    let lenet = repository().join("assets/digits/lenet5.onnx").display().to_string();
    let rows: [(&[&str], &str); 8] = [
        (&["missing.onnx"], "neither a model file nor a repository"),
        (&["damaged.onnx", "--backend", "cpu"], "is not an ONNX model"),
        (&[&lenet, "--http", "0.0.0.0:0"], "file of tokens"),
        (&[&lenet, "--http", "127.0.0.1:0", "--grpc", "0.0.0.0:0"], "file of tokens"),
        (
            &[
                &lenet,
                "--backend",
                "cpu",
                "--http",
                "127.0.0.1:0",
                "--grpc",
                "off",
                "--tls-cert",
                "short",
                "--tls-key",
                "short",
            ],
            "no certificate in PEM",
        ),
        (&[&lenet, "--token-file", "short"], "is no token"),
        (&[&lenet, "--report", "r.json"], "leave it out"),
        (&[&lenet, "--threads", "0"], "number of threads is 0"),
    ];
    for (arguments, part) in rows {
        let out = Command::new(env!("CARGO_BIN_EXE_fcdcc"))
            .arg("serve")
            .args(arguments)
            .args(["--quiet", "--calibrate", "never"])
            .current_dir(folder.path("."))
            .output()
            .unwrap();
        let text = String::from_utf8(out.stderr).unwrap();
        let one = text.lines().count() == 1 && text.starts_with("error: ");
        assert!(out.status.code() == Some(2) && one && text.contains(part), "{arguments:?}: {text}");
    }
}
