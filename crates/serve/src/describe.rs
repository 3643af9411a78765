//! What a server says of itself and its models, before a protocol encodes it, and as JSON.
//!
//! Relevant if you want to know the names in metadata, configuration, statistics and index, which are those that clients of
//! the protocol know.
//!
//! Invariant: both protocols describe a model from the same values.

use serde_json::{Value, json};

use crate::facts::Fact;
use crate::registry::{Entry, State};
use crate::served::Served;
use crate::stats::{Phases, Totals};

/// The name of the server.
pub(crate) const NAME: &str = "fcdcc";
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What the server does beyond the core of the protocol.
pub(crate) const EXTENSIONS: [&str; 7] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
];
/// The platform of every model.
pub(crate) const PLATFORM: &str = "onnx_fcdcc";

/// The configuration of a model.
pub(crate) struct Configuration<'a> {
    pub(crate) name: &'a str,
    /// Largest number of items of a run; 0 without batching.
    pub(crate) max_batch_size: usize,
    pub(crate) inputs: Vec<Described<'a>>,
    pub(crate) outputs: Vec<Described<'a>>,
    pub(crate) batching: Option<DynamicBatching>,
}

/// An input or output of a configuration.
pub(crate) struct Described<'a> {
    pub(crate) name: &'a str,
    /// Such as `TYPE_FP32`.
    pub(crate) data_type: String,
    /// Without the axis of the batch where there is batching.
    pub(crate) dims: &'a [i64],
}

/// How requests are joined.
pub(crate) struct DynamicBatching {
    pub(crate) preferred_sizes: Vec<usize>,
    pub(crate) max_delay_us: u64,
}

impl<'a> Configuration<'a> {
    pub(crate) fn of(model: &'a Served) -> Self {
        let batching = model.config.batching.as_ref();
        let dims = |fact: &'a Fact| Described {
            name: &fact.name,
            data_type: format!("TYPE_{}", fact.datatype.name()),
            dims: fact.shape.get(usize::from(batching.is_some())..).unwrap_or_default(),
        };
        Self {
            name: &model.name,
            max_batch_size: batching.map_or(0, |batching| batching.max_size),
            inputs: model.inputs.iter().map(dims).collect(),
            outputs: model.outputs.iter().map(dims).collect(),
            batching: batching.map(|batching| DynamicBatching {
                preferred_sizes: batching.preferred_sizes.clone(),
                max_delay_us: u64::try_from(batching.max_delay.as_micros()).unwrap_or(u64::MAX),
            }),
        }
    }

    pub(crate) fn json(&self) -> Value {
        let dims = |all: &[Described]| -> Vec<Value> {
            all.iter().map(|d| json!({ "name": d.name, "data_type": d.data_type, "dims": d.dims })).collect()
        };
        let mut value = json!({
            "name": self.name,
            "platform": PLATFORM,
            "backend": NAME,
            "max_batch_size": self.max_batch_size,
            "input": dims(&self.inputs),
            "output": dims(&self.outputs),
        });
        if let Some(batching) = &self.batching {
            value["dynamic_batching"] = json!({
                "preferred_batch_size": batching.preferred_sizes,
                "max_queue_delay_microseconds": batching.max_delay_us,
            });
        }
        value
    }
}

pub(crate) fn server() -> Value {
    json!({ "name": NAME, "version": VERSION, "extensions": EXTENSIONS })
}

pub(crate) fn metadata(model: &Served, versions: &[String]) -> Value {
    let facts = |facts: &[Fact]| -> Vec<Value> {
        let fact = |f: &Fact| json!({ "name": f.name, "datatype": f.datatype.name(), "shape": f.shape });
        facts.iter().map(fact).collect()
    };
    json!({
        "name": model.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": facts(&model.inputs),
        "outputs": facts(&model.outputs),
    })
}

/// Statistics of one version of a model.
pub(crate) fn statistics(model: &Served) -> Value {
    let totals: Totals = model.stats.totals();
    let phases = |of: &Phases| json!({ "compute_input": of.input, "compute_infer": of.infer, "compute_output": of.output });
    let batches = totals.batches.iter().map(|(size, of)| {
        let mut value = phases(of);
        value["batch_size"] = json!(size);
        value
    });
    let none = json!({ "count": 0, "ns": 0 });
    let mut requests = phases(&totals.requests);
    requests["success"] = json!(totals.success);
    requests["fail"] = json!(totals.fail);
    requests["queue"] = json!(totals.requests.queue);
    // Results are never cached; clients expect the fields.
    requests["cache_hit"] = none.clone();
    requests["cache_miss"] = none;
    json!({
        "name": model.name,
        "version": model.version.to_string(),
        "last_inference": totals.last_ms,
        "inference_count": totals.inferences,
        "execution_count": totals.executions,
        "inference_stats": requests,
        "batch_stats": batches.collect::<Vec<_>>(),
    })
}

/// State and reason of a version.
pub(crate) fn state(state: &State) -> (&'static str, &str) {
    match state {
        State::Ready => ("READY", ""),
        State::Loading => ("LOADING", ""),
        State::Unavailable(why) => ("UNAVAILABLE", why),
    }
}

/// A row of the index.
pub(crate) fn row(entry: &Entry) -> Value {
    let (state, reason) = state(&entry.state);
    json!({ "name": entry.name, "version": entry.version.to_string(), "state": state, "reason": reason })
}
