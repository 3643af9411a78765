//! Where the file of a model can be read again.
//!
//! A loaded model is a graph: the message of its file is dropped. What needs the file itself, such as taking parts out of
//! it, reads it a second time.
//!
//! Invariant: a file that is not the one that was loaded is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tract_onnx::pb::ModelProto;

use super::examine::{external_bytes, tensor_bytes};
use super::external;
use super::guard::refused;
use super::read::{admitted, framework, message};
use crate::error::{Error, Result};
use crate::files::Input;
use crate::memory;

/// Where the file of a model can be read again.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// A regular file, with its length and the time of its last change.
    File { path: PathBuf, state: (u64, Option<SystemTime>) },
    /// Bytes in memory.
    Memory(Arc<[u8]>),
    /// Nowhere.
    Gone,
}

/// Length and time of the last change of a regular file.
fn state(path: &Path) -> Option<(u64, Option<SystemTime>)> {
    let about = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some((about.len(), about.modified().ok()))
}

impl Origin {
    /// That of a model that is about to be loaded from `path`.
    pub(super) fn of_file(path: &Path) -> Self {
        state(path).map_or(Self::Gone, |state| Self::File { path: path.to_owned(), state })
    }

    /// The message of the file, with the data of external tensors in it. `name`: that of the model.
    ///
    /// # Errors
    /// [`Error::File`] for a file that has changed, [`Error::Model`] for a model whose bytes are gone, and those of reading.
    pub(super) fn message(&self, name: &str) -> Result<ModelProto> {
        let (onnx, mut proto, path);
        match self {
            Self::File { path: own, state: known } => {
                if state(own).as_ref() != Some(known) {
                    let cause = "has changed since the model was loaded: load it again".to_owned();
                    return Err(Error::File { path: own.display().to_string(), cause, input: true });
                }
                let mut file = Input::open(own)?;
                let length = admitted(name, &mut file)?;
                onnx = framework();
                proto = message(name, &onnx, &mut file, length)?.0;
                path = Some(own.as_path());
            }
            Self::Memory(bytes) => {
                let mut rest = &bytes[..];
                proto = message(name, &framework(), &mut rest, Some(bytes.len() as u64))?.0;
                path = None;
            }
            Self::Gone => {
                let cause = "its bytes were not kept, and parts are taken out of a file: load the model from a regular \
                             file, or use `Model::from_shared`";
                return Err(refused(name, cause));
            }
        }
        let mut first = None;
        let external = external::settle(&mut proto, path, &mut |why| {
            first.get_or_insert_with(|| refused(name, why));
        });
        if let Some(error) = first {
            return Err(error);
        }
        if let Some(external) = external {
            let bytes = proto.graph.as_ref().map_or(0, external_bytes);
            memory::require(&format!("reading the data beside {name}"), bytes)?;
            take_in(&mut proto, &external.root).map_err(|why| refused(name, &why))?;
        }
        Ok(proto)
    }
}

/// Moves the data of all external tensors into the message.
fn take_in(proto: &mut ModelProto, root: &str) -> Result<(), String> {
    let Some(graph) = proto.graph.as_mut() else { return Ok(()) };
    external::tensors(graph, &mut |tensor| {
        if external::is_external(tensor) {
            let bytes = tensor_bytes(tensor);
            external::take_in(tensor, root, bytes)?;
        }
        Ok(())
    })
}
