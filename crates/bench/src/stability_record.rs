//! The structure of `stability.json`: the results of a study of condition numbers and errors.
//!
//! Plain data. Infinite values (of sets that cannot be decoded) are written as `null`.

use serde::{Deserialize, Serialize};

use super::schema::{Conditions, Environment, infinite};

/// Version of [`StabilityReport`].
pub const SCHEMA: u32 = 1;

/// The greatest relative error that is still usable: three correct digits.
pub const USABLE: f64 = 1e-3;

/// A whole study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StabilityReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where, when and how it was computed.
    pub setting: Environment,
    /// Condition numbers of every family, a table for each (n, delta).
    pub tables: Vec<ConditionTable>,
    /// Condition numbers against n, one entry for each rule that gives delta.
    pub sweep: Vec<Sweep>,
    /// Condition numbers against the number of awaited subtasks.
    pub responders: Vec<Waiting>,
    /// The effect of losing a host.
    pub hosts: Vec<HostLoss>,
    /// Errors of decoded convolutions.
    pub errors: Vec<CodingError>,
    /// Requested cells that do not exist.
    pub left_out: Vec<LeftOut>,
    /// The main findings as sentences.
    pub findings: Vec<String>,
}

/// Condition numbers of several codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConditionTable {
    /// Readable: `n = 20, delta = 16`.
    pub label: String,
    /// A row for each code.
    pub rows: Vec<Conditions>,
}

/// Condition numbers against n.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// Readable: `n - delta = 4`.
    pub label: String,
    /// By code, then n ascending.
    pub points: Vec<Conditions>,
}

/// Condition numbers of least-squares decoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// Subtasks that have answered.
    pub responders: usize,
    /// Condition numbers over sets of this size.
    pub conditions: Conditions,
}

/// The effect of losing a host with several subtasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostLoss {
    /// Code family.
    pub code: String,
    /// Subtasks.
    pub n: usize,
    /// Hosts, with n / hosts subtasks each.
    pub hosts: usize,
    /// Worst condition number if each host holds adjacent subtasks.
    #[serde(with = "infinite")]
    pub adjacent: f64,
    /// Worst condition number if host h holds subtasks h, h + hosts, h + 2 hosts and so on.
    #[serde(with = "infinite")]
    pub interleaved: f64,
}

/// The error of one decoded convolution, against the uncoded one in f64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CodingError {
    /// The layer's name.
    pub layer: String,
    /// Code family; `uncoded` for the convolution in the same arithmetic without a code.
    pub code: String,
    /// Subtasks.
    pub n: usize,
    /// delta.
    pub recovery_threshold: usize,
    /// Input partitions.
    pub k_a: usize,
    /// Filter partitions.
    pub k_b: usize,
    /// Precision: `f32` or `f64`.
    pub dtype: String,
    /// The responder set: `median` or `worst` by condition number, `random`, or `all` without a code.
    pub set: String,
    /// Condition number of the recovery matrix.
    #[serde(with = "infinite")]
    pub condition: f64,
    /// Mean squared error.
    #[serde(with = "infinite")]
    pub mse: f64,
    /// Norm of the error over the norm of the output.
    #[serde(with = "infinite")]
    pub relative_l2: f64,
    /// Predicted upper bound of `relative_l2`.
    #[serde(with = "infinite")]
    pub bound: f64,
}

/// A cell of the study that cannot be filled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Readable: `uncoded, n = 20, delta = 16`.
    pub what: String,
    /// The reason.
    pub reason: String,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn setting() -> Environment {
        Environment {
            version: "0.0.0".to_owned(),
            command: "fcdcc stability --quick".to_owned(),
            date: "2026-01-01T00:00:00Z".to_owned(),
            hardware: "a processor, 2 cores".to_owned(),
            system: "linux x86_64".to_owned(),
            mode: "real".to_owned(),
            workers: "none".to_owned(),
            precision: "f32, f64".to_owned(),
            seed: 7,
            trials: 100,
        }
    }

    #[test]
    fn json_gives_back_what_was_written_infinity_included() {
        let row = Conditions {
            code: "vandermonde".to_owned(),
            n: 40,
            recovery_threshold: 32,
            k_a: 4,
            k_b: 8,
            sets: 100,
            exhaustive: false,
            median: 2.5,
            p90: f64::INFINITY,
            p99: f64::INFINITY,
            worst: f64::INFINITY,
        };
        let report = StabilityReport {
            schema: SCHEMA,
            setting: setting(),
            tables: vec![ConditionTable { label: "a".to_owned(), rows: vec![row.clone()] }],
            sweep: vec![Sweep { label: "b".to_owned(), points: vec![row.clone()] }],
            responders: vec![Waiting { responders: 33, conditions: row }],
            hosts: vec![HostLoss {
                code: "crme".to_owned(),
                n: 20,
                hosts: 5,
                adjacent: 1551.0,
                interleaved: f64::INFINITY,
            }],
            errors: vec![CodingError {
                layer: "alexnet/conv1".to_owned(),
                code: "vandermonde".to_owned(),
                n: 40,
                recovery_threshold: 32,
                k_a: 4,
                k_b: 8,
                dtype: "f64".to_owned(),
                set: "worst".to_owned(),
                condition: 1e15,
                mse: f64::INFINITY,
                relative_l2: f64::INFINITY,
                bound: 0.5,
            }],
            left_out: vec![LeftOut { what: "uncoded".to_owned(), reason: "why".to_owned() }],
            findings: vec!["x".to_owned()],
        };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(text.matches("null").count(), 3 * 3 + 1 + 2);
        assert_eq!(serde_json::from_str::<StabilityReport>(&text).unwrap(), report);
    }
}
