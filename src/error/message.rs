//! The texts of errors, in which options are named by type.
//!
//! Relevant if your program offers this library's options under names of its own. A [`Message`] holds each option as a
//! [`Parameter`]; [`Error::with_names`](super::Error::with_names) replaces the library's name by yours.
//!
//! Invariant: a message displays as one text; only the names of the parameters in it vary.

use std::fmt;

/// An option of this library that an error names. It displays as its path, such as `Policy::deadline`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Parameter {
    /// Number of coded subtasks.
    Subtasks,
    /// Number of workers of a plan.
    Workers,
    /// Number of stragglers to tolerate.
    Tolerate,
    /// Partitions (k_A, k_B).
    Partitions,
    /// Time limit of a run.
    Deadline,
    /// What to do when fewer results than needed can come.
    OnShortfall,
    /// Quantile after which a subtask is hedged.
    Hedge,
    /// Extra wait of badly conditioned runs.
    Patience,
    /// Whether spare results are used as checksums.
    Audit,
    /// Largest acceptable error bound.
    MaxError,
    /// Windowwise error bound above which a layer is computed differently.
    MaxWindowwise,
    /// Groups of a convolution.
    Groups,
    /// Element type of the computation.
    ElementType,
    /// Rates that are not measured.
    DefaultRates,
    /// Shape of an input of a model.
    InputShape {
        /// The input's name.
        input: String,
    },
}

impl Parameter {
    /// All parameters without data, for tests of tables of names.
    pub const ALL: [Self; 14] = [
        Self::Subtasks,
        Self::Workers,
        Self::Tolerate,
        Self::Partitions,
        Self::Deadline,
        Self::OnShortfall,
        Self::Hedge,
        Self::Patience,
        Self::Audit,
        Self::MaxError,
        Self::MaxWindowwise,
        Self::Groups,
        Self::ElementType,
        Self::DefaultRates,
    ];
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Subtasks => "LayerOptions::subtasks",
            Self::Workers => "PlanOptions::workers",
            Self::Tolerate => "LayerOptions::tolerate",
            Self::Partitions => "LayerOptions::partitions",
            Self::Deadline => "Policy::deadline",
            Self::OnShortfall => "Policy::on_shortfall",
            Self::Hedge => "Policy::hedge",
            Self::Patience => "Policy::patience",
            Self::Audit => "Policy::audit",
            Self::MaxError => "LayerOptions::max_error",
            Self::MaxWindowwise => "LayerOptions::max_windowwise",
            Self::Groups => "ConvParams::groups",
            Self::ElementType => "element type",
            Self::DefaultRates => "Rates::default()",
            Self::InputShape { .. } => "Model::with_input_shape",
        })
    }
}

/// A text that may name parameters. It displays as plain text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(Box<[Piece]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Words(String),
    Parameter(Parameter),
}

impl Message {
    /// `name` with `parameter` in parentheses, such as "deadline (Policy::deadline)".
    #[must_use]
    pub fn about(name: &str, parameter: Parameter) -> Self {
        Self::from(format!("{name} (")).and(parameter).and(")")
    }

    /// This message, followed by `next`.
    #[must_use]
    pub fn and(self, next: impl Into<Self>) -> Self {
        let mut pieces = self.0.into_vec();
        pieces.extend(next.into().0);
        Self(pieces.into())
    }

    /// The parameters that the message names, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Parameter(parameter) => Some(parameter),
            Piece::Words(_) => None,
        })
    }

    /// Replaces every parameter by its name in `names`.
    pub(super) fn replace(&mut self, names: &dyn Fn(&Parameter) -> String) {
        for piece in &mut self.0 {
            if let Piece::Parameter(parameter) = piece {
                *piece = Piece::Words(names(parameter));
            }
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Words(words) => f.write_str(words),
            Piece::Parameter(parameter) => parameter.fmt(f),
        })
    }
}

impl From<String> for Message {
    fn from(words: String) -> Self {
        Self([Piece::Words(words)].into())
    }
}

impl From<&str> for Message {
    fn from(words: &str) -> Self {
        words.to_owned().into()
    }
}

impl From<Parameter> for Message {
    fn from(parameter: Parameter) -> Self {
        Self([Piece::Parameter(parameter)].into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_the_librarys_names_until_they_are_replaced() {
        let mut message = Message::from("raise ").and(Parameter::Deadline).and(", or wait");
        assert_eq!(message.to_string(), "raise Policy::deadline, or wait");
        assert_eq!(message.parameters().collect::<Vec<_>>(), [&Parameter::Deadline]);
        message.replace(&|_| "the limit".to_owned());
        assert_eq!(message.to_string(), "raise the limit, or wait");
        assert_eq!(message.parameters().count(), 0);
        assert_eq!(
            Message::about("deadline", Parameter::Deadline).to_string(),
            "deadline (Policy::deadline)"
        );
    }
}
