//! Engines that are Python packages, each in a process of its own. `python/conv_server.py` is the other side.

use std::time::Duration;

use anyhow::Result;
use fcdcc_peers::child::{Answer, Process, Script};
use serde_json::{Value, json};

use crate::engine::{Clock, Engine, Job, Span};

/// Longest wait for one answer; the longest request makes four sessions of a layer and tries them.
const ANSWER: Duration = Duration::from_mins(1);

pub(crate) const ONNXRUNTIME: Script =
    Script { name: "onnxruntime", file: "onnxruntime_conv.py", packages: "numpy, onnx, onnxruntime" };
#[cfg(feature = "gpu")]
pub(crate) const TORCH: Script = Script { name: "torch", file: "torch_conv.py", packages: "numpy, torch" };

/// A process that serves one engine.
pub(crate) struct PythonEngine {
    script: Script,
    process: Process,
    clock: Clock,
    about: String,
}

impl PythonEngine {
    /// Starts `script` with a Python that has its packages.
    pub(crate) fn start(script: Script) -> Result<Self> {
        let mut process = Process::python(script)?;
        let about = process.ask(&json!({ "command": "about" }), &[], ANSWER)?.note();
        Ok(Self { script, process, clock: Clock::Wall, about })
    }

    /// Name and versions.
    pub(crate) fn about(&self) -> &str {
        &self.about
    }

    /// As [`Process::ask`].
    pub(crate) fn ask(&mut self, request: &Value, payload: &[&[f32]], limit: Duration) -> Result<Answer> {
        self.process.ask(request, payload, limit)
    }
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
        Ok(self.ask(&request, &[&job.data.input, &job.data.weight], ANSWER)?.note())
    }

    fn run(&mut self) -> Result<Vec<f32>> {
        Ok(self.ask(&json!({ "command": "run" }), &[], ANSWER)?.floats())
    }

    fn time(&mut self, span: Span, calls: usize) -> Result<f64> {
        let clock = self.clock.name();
        let request = json!({ "command": "time", "calls": calls, "clock": clock, "span": span.name() });
        self.ask(&request, &[], ANSWER)?.field("seconds")
    }
}
