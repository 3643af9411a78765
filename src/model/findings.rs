//! Collects every reason for which a file is refused.
//!
//! Relevant if you want to know why a file cannot run. Loading a model ends with the first reason, as an error;
//! [`Inspection`](super::Inspection) lists all of them. Both go through the same checks, which report to a [`Findings`].
//!
//! Invariant: the error is the first reason, in the same words. At most [`MOST_REASONS`] reasons with [`MOST_NODES`] nodes
//! each are kept, whatever a file holds; the rest is counted.

use serde::Serialize;
use tract_onnx::pb::NodeProto;

use super::check::name_of;
use super::guard::{one_line, refused};
use crate::error::{Error, Result};

/// Maximum number of reasons that are kept.
const MOST_REASONS: usize = 200;
/// Maximum number of nodes that a reason lists.
const MOST_NODES: usize = 100;

/// What a reason is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ReasonKind {
    /// The file is no ONNX model, is damaged, or is too long.
    File,
    /// The model does not fit into the memory of this machine.
    Memory,
    /// Operators that cannot be run.
    Operator,
    /// A node that is ambiguous, has no meaning, or is for training.
    Node,
    /// An element type that cannot be given or computed.
    Type,
    /// A file of tensors beside the model is missing, is cut short, or may not be read.
    External,
    /// Names, values or functions of the graph do not fit together.
    Graph,
    /// Operators and shapes do not fit together.
    Shape,
}

impl ReasonKind {
    /// What to do where the message itself does not say it.
    fn help(self) -> &'static str {
        match self {
            Self::File => "fetch the file again, or export the model again",
            Self::Memory => "use a machine with more memory, or a smaller model",
            Self::Operator => "export the model with other operators",
            Self::Node | Self::Graph => "export the model again",
            Self::Type => "export the model with numbers of another type",
            Self::External => "put the file beside the model",
            Self::Shape => "give the inputs other shapes, or export the model again",
        }
    }
}

/// A node of a file, by name and operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NodeName {
    /// Its name, or that of its first output if it has none.
    pub name: String,
    /// Its operator.
    pub op: String,
}

impl NodeName {
    pub(super) fn of(node: &NodeProto) -> Self {
        Self { name: name_of(node).cloned().unwrap_or_default(), op: node.op_type.clone() }
    }
}

/// One reason why a file cannot run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reason {
    /// What it is about.
    pub kind: ReasonKind,
    /// The words of the error with which [`Model::load`](super::Model::load) or
    /// [`Model::prepare`](super::Model::prepare) refuses the file, without the name of the file.
    pub message: String,
    /// What to do; part of `message` where the error says it.
    pub help: String,
    /// The nodes concerned, if it is about nodes: the first 100.
    pub nodes: Vec<NodeName>,
    /// The number of all nodes concerned.
    pub node_count: usize,
}

/// The reasons found in one file.
#[derive(Debug, Default)]
pub(super) struct Findings {
    reasons: Vec<Reason>,
    left_out: usize,
    first: Option<Error>,
}

impl Findings {
    /// Records that the model called `name` is refused because of `cause`. `help` ends the cause, if it contains one.
    pub(super) fn refuse(&mut self, name: &str, kind: ReasonKind, cause: &str, help: Option<&str>) {
        let error = refused(name, cause);
        self.push(kind, one_line(cause), help, error);
    }

    /// Records an error about the model called `name`.
    pub(super) fn error(&mut self, name: &str, kind: ReasonKind, error: Error) {
        let text = error.to_string();
        let message = text.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&text);
        let kind = if matches!(error, Error::Memory { .. }) { ReasonKind::Memory } else { kind };
        self.push(kind, message.to_owned(), None, error);
    }

    /// Lists nodes in the last reason.
    pub(super) fn of_nodes<'a>(&mut self, nodes: impl IntoIterator<Item = &'a NodeProto>) {
        if self.left_out > 0 {
            return;
        }
        let Some(last) = self.reasons.last_mut() else { return };
        for node in nodes {
            last.node_count += 1;
            if last.nodes.len() < MOST_NODES {
                last.nodes.push(NodeName::of(node));
            }
        }
    }

    fn push(&mut self, kind: ReasonKind, message: String, help: Option<&str>, error: Error) {
        self.first.get_or_insert(error);
        if self.reasons.iter().any(|known| known.message == message) {
            return;
        }
        if self.reasons.len() == MOST_REASONS {
            self.left_out += 1;
            return;
        }
        let help = help.unwrap_or(kind.help()).to_owned();
        self.reasons.push(Reason { kind, message, help, nodes: Vec::new(), node_count: 0 });
    }

    /// The first reason as an error, if there is one.
    pub(super) fn ended(&mut self) -> Result<()> {
        self.first.take().map_or(Ok(()), Err)
    }

    /// Whether nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// The reasons, and the number of those that were not kept.
    pub(super) fn into_reasons(self) -> (Vec<Reason>, usize) {
        (self.reasons, self.left_out)
    }
}
