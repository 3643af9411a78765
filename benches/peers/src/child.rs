//! Engines that are Python packages: a child process for each, which answers requests over stdin and stdout, so that
//! its turns alternate with those of the engines in this process. `python/conv_server.py` is the other side.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::engine::{Clock, Engine, Job, Span};

/// Longest wait for one answer; the longest request makes four sessions of a layer and tries them.
const ANSWER: Duration = Duration::from_mins(1);

/// Children that run, for [`kill_all`].
static RUNNING: Mutex<Vec<Arc<Mutex<Child>>>> = Mutex::new(Vec::new());

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends every child that is still there.
pub(crate) fn kill_all() {
    for child in locked(&RUNNING).drain(..) {
        let mut child = locked(&child);
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A Python engine of this package.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    pub(crate) name: &'static str,
    file: &'static str,
    packages: &'static str,
}

pub(crate) const ONNXRUNTIME: Script =
    Script { name: "onnxruntime", file: "onnxruntime_conv.py", packages: "numpy, onnx, onnxruntime" };
#[cfg(feature = "gpu")]
pub(crate) const TORCH: Script = Script { name: "torch", file: "torch_conv.py", packages: "numpy, torch" };

/// The line of an answer.
#[derive(Deserialize)]
pub(crate) struct Header {
    ok: bool,
    bytes: usize,
    #[serde(default)]
    note: String,
    #[serde(default)]
    error: String,
    seconds: Option<f64>,
}

pub(crate) type Answer = (Header, Vec<u8>);

/// A child that serves one engine.
pub(crate) struct PythonEngine {
    script: Script,
    child: Arc<Mutex<Child>>,
    answers: Receiver<Result<Answer>>,
    clock: Clock,
    about: String,
}

impl PythonEngine {
    /// Starts `script` with a Python that has its packages.
    pub(crate) fn start(script: Script) -> Result<Self> {
        let python = find_python(script)?;
        let file = package().join("python").join(script.file);
        let mut child = Command::new(&python)
            .arg("-u")
            .arg(&file)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let mut output = BufReader::new(child.stdout.take().context("the child has no stdout")?);
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            loop {
                let answer = read_answer(&mut output);
                let last = answer.is_err();
                // Nobody listens any more once the engine is dropped.
                if sender.send(answer).is_err() || last {
                    return;
                }
            }
        });
        let child = Arc::new(Mutex::new(child));
        locked(&RUNNING).push(Arc::clone(&child));
        let mut engine = Self { script, child, answers, clock: Clock::Wall, about: String::new() };
        engine.about = engine.ask(&json!({ "command": "about" }), &[], ANSWER)?.0.note;
        Ok(engine)
    }

    /// Name and versions.
    pub(crate) fn about(&self) -> &str {
        &self.about
    }

    /// Sends a request and waits for the answer, at most until `limit`; after that the child is gone.
    pub(crate) fn ask(&mut self, request: &Value, payload: &[&[f32]], limit: Duration) -> Result<Answer> {
        let bytes: usize = payload.iter().map(|part| size_of_val(*part)).sum();
        let mut request = request.clone();
        request["bytes"] = bytes.into();
        let deadline = Instant::now() + limit;
        let mut message = serde_json::to_vec(&request)?;
        message.push(b'\n');
        message.extend(payload.iter().copied().flatten().flat_map(|number| number.to_le_bytes()));
        // A child that reads nothing must not hold us up, so another thread writes.
        let stdin = locked(&self.child).stdin.take().context("its process has ended")?;
        let writer = std::thread::spawn(move || -> Result<_> {
            let mut stdin = stdin;
            stdin.write_all(&message)?;
            stdin.flush()?;
            Ok(stdin)
        });
        let answer = match self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                self.end();
                bail!("no answer to {} within {limit:?}", request["command"]);
            }
            Err(RecvTimeoutError::Disconnected) => bail!("its process has ended"),
        };
        let (header, payload) = answer?;
        // It has answered, so it has read the request.
        let stdin = writer.join().map_err(|_| anyhow!("the writing thread failed"))??;
        locked(&self.child).stdin = Some(stdin);
        ensure!(header.ok, "{}", header.error);
        Ok((header, payload))
    }

    fn end(&mut self) {
        let mut child = locked(&self.child);
        let _ = child.kill();
        let _ = child.wait();
        drop(child);
        locked(&RUNNING).retain(|other| !Arc::ptr_eq(other, &self.child));
    }
}

impl Drop for PythonEngine {
    fn drop(&mut self) {
        self.end();
    }
}

fn read_answer(output: &mut impl BufRead) -> Result<Answer> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(!line.is_empty(), "its process has ended");
    let header: Header = serde_json::from_str(&line).context("an answer that is none")?;
    let mut payload = vec![0; header.bytes];
    output.read_exact(&mut payload)?;
    Ok((header, payload))
}

impl Engine for PythonEngine {
    fn name(&self) -> &'static str {
        self.script.name
    }

    fn load(&mut self, job: &Job<'_>) -> Result<String> {
        self.clock = job.clock;
        let (layer, shape) = (job.layer, &job.layer.shape);
        let request = json!({
            "command": "load",
            "clock": job.clock.name(),
            "groups": shape.groups,
            "input": shape.input_shape(),
            "input_elems": shape.input_elems(),
            "output": shape.output_shape(),
            "padding": layer.padding,
            "pin": job.pin,
            "stride": layer.stride,
            "threads": job.threads,
            "weight": shape.weight_shape(),
        });
        Ok(self.ask(&request, &[&job.data.input, &job.data.weight], ANSWER)?.0.note)
    }

    fn run(&mut self) -> Result<Vec<f32>> {
        let (_, payload) = self.ask(&json!({ "command": "run" }), &[], ANSWER)?;
        let (numbers, _) = payload.as_chunks();
        Ok(numbers.iter().copied().map(f32::from_le_bytes).collect())
    }

    fn time(&mut self, span: Span, calls: usize) -> Result<f64> {
        let clock = self.clock.name();
        let request = json!({ "command": "time", "calls": calls, "clock": clock, "span": span.name() });
        self.ask(&request, &[], ANSWER)?.0.seconds.context("an answer without seconds")
    }
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The first Python that has the script's packages: the one that `FCDCC_PYTHON` names, and no other then; else that
/// of `.venv` in the repository; else `python3`.
fn find_python(script: Script) -> Result<PathBuf> {
    let named = std::env::var_os("FCDCC_PYTHON").filter(|name| !name.is_empty());
    let candidates = named.map_or_else(
        || vec![package().join("../../.venv/bin/python"), PathBuf::from("python3")],
        |name| vec![PathBuf::from(name)],
    );
    for candidate in &candidates {
        if imports(candidate, script.packages) {
            return Ok(candidate.clone());
        }
    }
    let tried: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
    bail!("no Python with {} ({} tried; FCDCC_PYTHON names another)", script.packages, tried.join(", "))
}

fn imports(python: &Path, packages: &str) -> bool {
    let child = Command::new(python)
        .args(["-c", &format!("import {packages}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    let deadline = Instant::now() + ANSWER;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}
