//! The page of `fcdcc serve` in a real browser.
//!
//! Without Chromium every test is shown as ignored, never as passed, even with `CI=true`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed unwrap is a failed test; notices")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use fcdcc_test_support::binary::{command, repository};
use libtest_mimic::Trial;
use serde_json::json;
use tempfile::TempDir;

use crate::browser::{Browser, installed};

const LIMIT: Duration = Duration::from_mins(2);

/// A server of LeNet-5 with labels, a worker that is late and one that is lost.
struct Site {
    child: Child,
    url: String,
    folder: TempDir,
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Site {
    fn new(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let written =
            Command::new(command()).args(["demo", "--quiet", "--write"]).arg(folder.path()).status();
        assert!(written.unwrap().success());
        std::fs::write(folder.path().join("tokens"), "token-of-the-test-1\n").unwrap();
        let mut child = Command::new(command())
            .current_dir(folder.path())
            .args([
                "serve",
                "lenet5.onnx",
                "--labels",
                "labels.txt",
                "--backend",
                "cpu",
                "--calibrate",
                "never",
            ])
            .args(["--http", "127.0.0.1:0", "--grpc", "off", "--fault", "1:delay=10s", "--fault", "4:crash"])
            .args(options)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // The test may not listen any more.
                let _ = sender.send(line);
            }
        });
        let url = loop {
            let line = lines.recv_timeout(LIMIT).unwrap();
            if let Some(at) = line.find("http://") {
                break line[at..].split([';', ' ']).next().unwrap().to_owned();
            }
        };
        Self { child, url, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The address of another site, on this machine.
fn elsewhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            // What it asks for does not matter, and it may be gone.
            let _ = stream.read(&mut head);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9\r\nConnection: close\r\n\r\nelsewhere",
            );
        }
    });
    url
}

const ANSWERED: &str =
    "!document.getElementById('answer').hidden && !document.getElementById('totals').hidden";
const LISTED: &str =
    "document.getElementById('model') !== null && document.getElementById('model').options.length > 0";

/// What `fcdcc run` says of the picture.
fn expected(picture: &Path) -> String {
    let out = Command::new(command())
        .arg("run")
        .arg(repository().join("assets/digits/lenet5.onnx"))
        .args(["--quiet", "--backend", "cpu", "--calibrate", "never", "--top", "1", "--labels"])
        .arg(picture.with_file_name("labels.txt"))
        .arg("--input")
        .arg(picture)
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap()
}

fn a_picture_is_classified_with_its_workers_and_its_cost() {
    let site = Site::new(&[]);
    let mut page = Browser::open(&site.url);
    page.wait(LISTED);
    page.choose(&site.file("digit.png"));
    page.wait(ANSWERED);
    let label = page.text("classes").lines().next().unwrap_or_default().to_owned();
    let expected = expected(&site.file("digit.png"));
    assert!(!label.is_empty() && expected.contains(&label), "{label} where {expected} was expected");
    let crew = page.text("crew");
    assert!(crew.contains("6 WORKERS") || crew.contains("6 workers"), "{crew}");
    assert!(crew.contains("late") && crew.contains("lost"), "{crew}");
    let cost = page.text("cost");
    assert!(
        ["encode", "wait for workers", "decode", "KiB", "needed"].iter().all(|part| cost.contains(part)),
        "{cost}"
    );
    assert!(page.text("totals").contains("in 1 run"), "{}", page.text("totals"));
    assert_eq!(page.complaints, Vec::<String>::new());
    // On a phone nothing sticks out.
    for width in [1200, 360] {
        page.resize(width);
        let fits = page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth");
        assert_eq!(fits, json!(true), "at {width} pixels");
    }
    // What is no picture gets the reason of the server.
    page.choose(&site.file("labels.txt"));
    page.wait("!document.getElementById('failure').hidden");
    assert!(page.text("failure").contains("is not a picture"), "{}", page.text("failure"));
}

fn a_browser_runs_no_other_script_and_asks_no_other_site() {
    let site = Site::new(&[]);
    let other = Site::new(&[]);
    let mut page = Browser::open(&site.url);
    page.wait(LISTED);
    let inject = "(() => { const s = document.createElement('script'); s.textContent = 'window.injected = 1'; \
        document.body.append(s); return window.injected === undefined; })()";
    assert_eq!(page.value(inject), json!(true));
    let fetch = |url: &str| format!("fetch('{url}/v2').then(() => 'answered', () => 'refused')");
    assert_eq!(page.value(&fetch(&other.url)), json!("refused"));
    assert_eq!(page.value(&fetch(&site.url)), json!("answered"));
    // A page without that policy reaches the other server, which does not do what it asks for.
    let mut foreign = Browser::open(&elsewhere());
    foreign.wait("document.body !== null && document.body.innerText === 'elsewhere'");
    let unload = format!(
        "fetch('{}/v2/repository/models/lenet5/unload', {{ method: 'POST', mode: 'no-cors' }}).then(() => 'sent', String)",
        other.url
    );
    assert_eq!(foreign.value(&unload), json!("sent"));
    let mut page = Browser::open(&other.url);
    page.wait(LISTED);
    assert!(page.text("model").contains("lenet5, version 1") && !page.text("model").contains("unavailable"));
}

fn a_token_is_asked_for() {
    let site = Site::new(&["--token-file", "tokens"]);
    let mut page = Browser::open(&site.url);
    let submit = |token: &str| {
        format!(
            "document.getElementById('token').value = '{token}'; document.getElementById('token-form').requestSubmit()"
        )
    };
    page.wait("document.getElementById('access') !== null && !document.getElementById('access').hidden");
    assert_eq!(page.value(LISTED), json!(false));
    page.value(&submit("another-token-123"));
    page.wait("document.getElementById('token-note').textContent.includes('does not know')");
    page.value(&submit("token-of-the-test-1"));
    page.wait(LISTED);
    assert_eq!(page.value("document.getElementById('access').hidden"), json!(true));
    page.choose(&site.file("digit.png"));
    page.wait(ANSWERED);
}

pub(crate) fn trials() -> Vec<Trial> {
    let present = installed().is_some();
    if !present {
        eprintln!("NOTICE: no chromium: tests of the server's page are ignored (apt-get install chromium)");
    }
    let all: [(&str, fn()); 3] = [
        (
            "a picture is classified with its workers and its cost",
            a_picture_is_classified_with_its_workers_and_its_cost,
        ),
        (
            "a browser runs no other script and asks no other site",
            a_browser_runs_no_other_script_and_asks_no_other_site,
        ),
        ("a token is asked for", a_token_is_asked_for),
    ];
    all.into_iter()
        .map(|(name, test)| {
            let trial = Trial::test(format!("page::{name}"), move || {
                test();
                Ok(())
            });
            trial.with_ignored_flag(!present)
        })
        .collect()
}
