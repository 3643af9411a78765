//! The other side of `compare.rs`: this program as the process of one of its engines, as `python/answers.py` describes it.
//!
//! Requests: `about`, `load` (see [`crate::engines::Request`]; the input follows), `run` (the outputs follow, of the `lengths` of the
//! answer), `time` (`calls` runs: `wall` seconds of each, `processor` seconds and the `master`'s share per run), `peak`
//! (the largest resident memory since loading).

use std::io::{BufRead, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::engines::{Kind, Network, load};

const EMPTY: &str = "no model is loaded";
/// Most bytes of an input.
const MOST: usize = 1 << 30;

/// Answers requests until the other side closes the pipe.
pub(crate) fn serve(kind: Kind) -> Result<()> {
    let (mut requests, mut answers) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut network = None;
    let mut line = String::new();
    loop {
        line.clear();
        if requests.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let request: Value = serde_json::from_str(&line).context("a request that is none")?;
        let bytes = usize::try_from(request["bytes"].as_u64().unwrap_or(0))?;
        ensure!(bytes <= MOST, "a request with {bytes} bytes of input, more than {MOST}");
        let mut payload = vec![0; bytes];
        requests.read_exact(&mut payload)?;
        let (mut header, payload) = answer(kind, &mut network, &request, &payload)
            .unwrap_or_else(|error| (json!({ "ok": false, "error": format!("{error:#}") }), Vec::new()));
        header["bytes"] = payload.len().into();
        serde_json::to_writer(&mut answers, &header)?;
        answers.write_all(b"\n")?;
        answers.write_all(&payload)?;
        answers.flush()?;
    }
}

fn answer(
    kind: Kind,
    network: &mut Option<Box<dyn Network>>,
    request: &Value,
    payload: &[u8],
) -> Result<(Value, Vec<u8>)> {
    match request["command"].as_str() {
        Some("about") => Ok((json!({ "ok": true, "note": kind.name() }), Vec::new())),
        Some("load") => {
            // The memory of the model before comes free first.
            *network = None;
            let (numbers, _) = payload.as_chunks();
            let input = numbers.iter().copied().map(f32::from_le_bytes).collect();
            let loaded = load(kind, &serde_json::from_value(request.clone())?, input)?;
            forget_peak();
            let note = loaded.note();
            *network = Some(loaded);
            Ok((json!({ "ok": true, "note": note }), Vec::new()))
        }
        Some("run") => {
            let outputs = network.as_deref().context(EMPTY)?.run()?;
            let lengths: Vec<usize> = outputs.iter().map(Vec::len).collect();
            let bytes = outputs.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
            Ok((json!({ "ok": true, "lengths": lengths }), bytes))
        }
        Some("time") => {
            let calls = request["calls"].as_u64().context("a request without calls")?;
            Ok((time(network.as_deref().context(EMPTY)?, calls)?, Vec::new()))
        }
        Some("peak") => Ok((json!({ "ok": true, "peak_bytes": peak_bytes() }), Vec::new())),
        // The self-test's: an engine that does not answer.
        Some("hang") => {
            std::thread::sleep(Duration::from_hours(1));
            bail!("slept for an hour")
        }
        _ => bail!("unknown command {}", request["command"]),
    }
}

/// Times `calls` runs. Processor time goes on until no thread works any more: stragglers count, and they are not left to
/// the next run.
fn time(network: &dyn Network, calls: u64) -> Result<Value> {
    ensure!(calls > 0, "no call to time");
    let (mut wall, mut master) = (Vec::new(), Vec::new());
    let begin = processor_seconds();
    for _ in 0..calls {
        let start = Instant::now();
        master.extend(network.call()?);
        wall.push(start.elapsed().as_secs_f64());
        network.settle()?;
    }
    let processor = begin.zip(processor_seconds()).map(|(begin, end)| (end - begin) / calls as f64);
    Ok(json!({ "ok": true, "wall": wall, "processor": processor, "master": master }))
}

/// Processor time of this process, of all its threads; `None` on systems that do not tell.
#[cfg_attr(unix, expect(clippy::unnecessary_wraps, reason = "other systems lack it"))]
fn processor_seconds() -> Option<f64> {
    #[cfg(unix)]
    {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Some(now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9)
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// The largest resident memory since [`forget_peak`] (Linux).
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Lets the peak begin again with what is resident now. Where that is not possible, the peak includes loading.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
