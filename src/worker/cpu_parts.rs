//! The parts of models that a CPU worker holds.
//!
//! Invariant: a part computes only while its worker has the [`turn`] on as many cores as it has threads.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::turns::turn;
use super::{CancelToken, CompiledPart, PartCompiler, PartFile, PartKey, PartSignature};
use crate::array::Values;
use crate::error::{Error, Result};

/// The compiler, and the parts that it made executable.
#[derive(Default)]
pub(super) struct CpuParts {
    compiler: Option<Arc<dyn PartCompiler>>,
    held: HashMap<PartKey, Box<dyn CompiledPart>>,
}

impl CpuParts {
    pub(super) fn new(compiler: Option<Arc<dyn PartCompiler>>) -> Self {
        Self { compiler, held: HashMap::new() }
    }

    pub(super) fn compiler(&self) -> Option<Arc<dyn PartCompiler>> {
        self.compiler.clone()
    }

    pub(super) fn install(
        &mut self,
        worker: &str,
        threads: usize,
        key: PartKey,
        part: &PartFile,
    ) -> Result<PartSignature> {
        let Some(compiler) = &self.compiler else {
            let cause = "has no compiler of parts of models: it computes convolutions only".to_owned();
            return Err(Error::WorkerFailed { worker: worker.to_owned(), cause });
        };
        // The part before makes room first.
        self.held.remove(&key);
        let compiled = compiler.compile(part, threads)?;
        let signature = compiled.signature().clone();
        self.held.insert(key, compiled);
        Ok(signature)
    }

    pub(super) fn remove(&mut self, key: PartKey) {
        self.held.remove(&key);
    }

    pub(super) fn run(
        &mut self,
        worker: &str,
        threads: usize,
        key: PartKey,
        inputs: &[Values],
        cancel: &CancelToken,
    ) -> Result<Vec<Values>> {
        let part = self.held.get_mut(&key).ok_or_else(|| no_part(worker, key))?;
        part.signature().check_inputs(inputs)?;
        let Some(turn) = turn(threads, cancel) else { return Err(Error::Cancelled) };
        turn.progress_unseen();
        part.run(inputs, cancel)
    }
}

/// The error for a part that was never installed, or was removed.
pub(crate) fn no_part(worker: &str, key: PartKey) -> Error {
    Error::WorkerFailed { worker: worker.to_owned(), cause: format!("holds no part {}", key.0) }
}

impl fmt::Debug for CpuParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.held.keys()).finish()
    }
}
