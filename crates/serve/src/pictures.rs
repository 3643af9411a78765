//! How a server turns pictures into inputs: the program that embeds it says so.
//!
//! Relevant if you want to embed a server that takes JPEG or PNG files.
//!
//! Invariant: an implementation checks the picture; the server limits its bytes only.

use fcdcc::model::{InputInfo, Tensor};

/// Decodes pictures for a model's input.
pub trait Pictures: Send + Sync + 'static {
    /// The data for `input` that the picture in `bytes` (JPEG, PNG) shows; `settings` is the table `[picture]` of
    /// `model.toml`. The result has one item.
    ///
    /// # Errors
    /// What is wrong with the picture, the input or the settings.
    fn read(
        &self,
        input: &InputInfo,
        settings: Option<&toml::Table>,
        bytes: Vec<u8>,
    ) -> fcdcc::Result<Tensor>;
}
