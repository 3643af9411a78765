//! Engines in processes of their own, which answer requests over stdin and stdout, so that their turns alternate with
//! those of others. `python/answers.py` is the other side of those that are Python packages.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Longest wait for a Python that imports its packages.
const IMPORT: Duration = Duration::from_mins(1);

/// Children that run, for [`kill_all`].
static RUNNING: Mutex<Vec<Arc<Mutex<Child>>>> = Mutex::new(Vec::new());

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends every child that is still there.
pub fn kill_all() {
    for child in locked(&RUNNING).drain(..) {
        let mut child = locked(&child);
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A Python program of this package.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// The name of its engine.
    pub name: &'static str,
    /// Its file in the folder `python`.
    pub file: &'static str,
    /// The packages it needs, as `import` wants them.
    pub packages: &'static str,
}

/// The line of an answer.
#[derive(Deserialize)]
struct Header {
    ok: bool,
    bytes: usize,
    #[serde(default)]
    error: String,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// The answer to a request.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    fields: Map<String, Value>,
    payload: Vec<u8>,
}

impl Answer {
    /// A field of the answer.
    ///
    /// # Errors
    /// When it is missing or not of this type.
    pub fn field<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let value = self.fields.get(name).with_context(|| format!("an answer without {name}"))?;
        T::deserialize(value).with_context(|| format!("an answer with {name} = {value}"))
    }

    /// What the engine says about itself; empty if nothing.
    #[must_use]
    pub fn note(&self) -> String {
        self.field("note").unwrap_or_default()
    }

    /// The numbers that came with the answer.
    #[must_use]
    pub fn floats(&self) -> Vec<f32> {
        let (numbers, _) = self.payload.as_chunks();
        numbers.iter().copied().map(f32::from_le_bytes).collect()
    }
}

/// A process that answers requests.
pub struct Process {
    child: Arc<Mutex<Child>>,
    answers: Receiver<Result<Answer>>,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut output = BufReader::new(child.stdout.take().context("the child has no stdout")?);
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            loop {
                let answer = read_answer(&mut output);
                // An engine that reports an error goes on; one whose answers cannot be read does not.
                let last = answer.is_err();
                let answer = answer.flatten();
                // No request waits any more once the process is dropped.
                if sender.send(answer).is_err() || last {
                    return;
                }
            }
        });
        let child = Arc::new(Mutex::new(child));
        locked(&RUNNING).push(Arc::clone(&child));
        Ok(Self { child, answers })
    }

    /// Starts `script` with a Python that has its packages.
    ///
    /// # Errors
    /// When there is no such Python, or it cannot be started.
    pub fn python(script: Script) -> Result<Self> {
        let python = find_python(script)?;
        let file = package().join("python").join(script.file);
        Self::start(Command::new(&python).arg("-u").arg(&file).env("PYTHONDONTWRITEBYTECODE", "1"))
    }

    /// Sends a request with `payload` and waits for the answer, at most until `limit`; after that the child is gone.
    ///
    /// # Errors
    /// When the child ends, does not answer in time, or answers that it failed.
    pub fn ask(&mut self, request: &Value, payload: &[&[f32]], limit: Duration) -> Result<Answer> {
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
        // If it has answered, it has read the request; if its process has ended, writing fails.
        let stdin = writer.join().map_err(|_| anyhow!("the writing thread failed"))?;
        // After an error of the engine itself the next request is welcome.
        if let Ok(stdin) = stdin {
            locked(&self.child).stdin = Some(stdin);
        }
        answer
    }

    fn end(&mut self) {
        let mut child = locked(&self.child);
        let _ = child.kill();
        let _ = child.wait();
        drop(child);
        locked(&RUNNING).retain(|other| !Arc::ptr_eq(other, &self.child));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// One answer; the outer error is one of the connection, the inner one the engine's own.
fn read_answer(output: &mut impl BufRead) -> Result<Result<Answer>> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(!line.is_empty(), "its process has ended");
    let header: Header = serde_json::from_str(&line).context("an answer that is none")?;
    let mut payload = vec![0; header.bytes];
    output.read_exact(&mut payload)?;
    Ok(if header.ok {
        Ok(Answer { fields: header.fields, payload })
    } else {
        Err(anyhow!("{}", header.error))
    })
}

/// The folder of this package.
#[must_use]
pub fn package() -> &'static Path {
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
    let deadline = Instant::now() + IMPORT;
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
