//! A worker around another worker, some of whose calls closures handle.
//!
//! Relevant if you want a worker that differs from another one in a few respects: one that counts, delays, fails or lies.
//! Every wrapper of this crate, fault injection included, is an [`Intercept`].
//!
//! Invariant: a call without a closure goes to the inner worker, unchanged.

use std::sync::Arc;

use super::{
    CancelToken, FilterKey, PartFile, PartKey, PartSignature, Presence, Respawn, SubtaskShape, Task, Worker,
    WorkerInfo,
};
use crate::array::Values;
use crate::error::Result;

type OnInfo = dyn Fn(&mut WorkerInfo) + Send;
type OnInstall = dyn FnMut(&mut dyn Worker, FilterKey, &SubtaskShape, Values) -> Result<()> + Send;
type OnShare = dyn FnMut(&mut dyn Worker, FilterKey, FilterKey, &SubtaskShape) -> Result<bool> + Send;
type OnRemove = dyn FnMut(&mut dyn Worker, FilterKey) + Send;
type OnExecute = dyn FnMut(&mut dyn Worker, Task<'_>, &mut dyn FnMut(usize, Values)) -> Result<()> + Send;
type OnInstallPart = dyn FnMut(&mut dyn Worker, PartKey, &PartFile) -> Result<PartSignature> + Send;
type OnRunPart = dyn FnMut(&mut dyn Worker, PartKey, &[Values], &CancelToken) -> Result<Vec<Values>> + Send;
type OnRespawn = dyn Fn(&dyn Worker) -> Option<Respawn> + Send;

/// A worker that forwards every call to an inner worker, except those that a closure handles; made by [`intercept`].
///
/// **Probes.** The closures for `install`, `remove` and `execute` see the calls of layers only. Calls with the key of a
/// [`Probe`](super::Probe) go to the inner worker, so that a pool accepts a worker whose closures misbehave.
/// [`Self::including_probes`] shows them to the closures too.
///
/// ```
/// use fcdcc::worker::intercept;
/// use fcdcc::{CpuWorker, Worker};
///
/// // Computes every sub-result twice as large.
/// let mut wrong = intercept(CpuWorker::new("wrong", 1)).on_execute(|inner, task, emit| {
///     inner.execute(task, &mut |index, mut values| {
///         if let fcdcc::array::Values::F32(values) = &mut values {
///             values.iter_mut().for_each(|value| *value *= 2.0);
///         }
///         emit(index, values);
///     })
/// });
/// assert_eq!(wrong.info().name, "wrong");
/// ```
pub struct Intercept {
    inner: Box<dyn Worker>,
    probes: bool,
    info: Option<Box<OnInfo>>,
    install: Option<Box<OnInstall>>,
    share: Option<Box<OnShare>>,
    remove: Option<Box<OnRemove>>,
    execute: Option<Box<OnExecute>>,
    install_part: Option<Box<OnInstallPart>>,
    run_part: Option<Box<OnRunPart>>,
    respawn: Option<Box<OnRespawn>>,
}

/// A worker that is still like `inner`: the methods of [`Intercept`] make it different.
#[must_use]
pub fn intercept(inner: impl Into<Box<dyn Worker>>) -> Intercept {
    Intercept {
        inner: inner.into(),
        probes: false,
        info: None,
        install: None,
        share: None,
        remove: None,
        execute: None,
        install_part: None,
        run_part: None,
        respawn: None,
    }
}

impl<W: Worker + 'static> From<W> for Box<dyn Worker> {
    fn from(worker: W) -> Self {
        Box::new(worker)
    }
}

impl Intercept {
    /// Shows the calls of probes to the closures too, not only those of layers.
    #[must_use]
    pub fn including_probes(mut self) -> Self {
        self.probes = true;
        self
    }

    /// Changes the description of the inner worker; must always make the same of it.
    #[must_use]
    pub fn with_info(mut self, change: impl Fn(&mut WorkerInfo) + Send + 'static) -> Self {
        self.info = Some(Box::new(change));
        self
    }

    /// Handles [`Worker::install`]. Unless [`Self::on_share`] says otherwise, filters are then never shared, so that the
    /// closure sees all filters.
    #[must_use]
    pub fn on_install(
        mut self,
        install: impl FnMut(&mut dyn Worker, FilterKey, &SubtaskShape, Values) -> Result<()> + Send + 'static,
    ) -> Self {
        self.install = Some(Box::new(install));
        self
    }

    /// Handles [`Worker::share`], whose keys are the new one and the one that is held.
    #[must_use]
    pub fn on_share(
        mut self,
        share: impl FnMut(&mut dyn Worker, FilterKey, FilterKey, &SubtaskShape) -> Result<bool> + Send + 'static,
    ) -> Self {
        self.share = Some(Box::new(share));
        self
    }

    /// Handles [`Worker::remove`].
    #[must_use]
    pub fn on_remove(mut self, remove: impl FnMut(&mut dyn Worker, FilterKey) + Send + 'static) -> Self {
        self.remove = Some(Box::new(remove));
        self
    }

    /// Handles [`Worker::execute`]: may change the task and what is emitted, call the inner worker several times or not at
    /// all.
    #[must_use]
    pub fn on_execute(
        mut self,
        execute: impl FnMut(&mut dyn Worker, Task<'_>, &mut dyn FnMut(usize, Values)) -> Result<()>
        + Send
        + 'static,
    ) -> Self {
        self.execute = Some(Box::new(execute));
        self
    }

    /// Handles [`Worker::install_part`].
    #[must_use]
    pub fn on_install_part(
        mut self,
        install: impl FnMut(&mut dyn Worker, PartKey, &PartFile) -> Result<PartSignature> + Send + 'static,
    ) -> Self {
        self.install_part = Some(Box::new(install));
        self
    }

    /// Handles [`Worker::run_part`].
    #[must_use]
    pub fn on_run_part(
        mut self,
        run: impl FnMut(&mut dyn Worker, PartKey, &[Values], &CancelToken) -> Result<Vec<Values>> + Send + 'static,
    ) -> Self {
        self.run_part = Some(Box::new(run));
        self
    }

    /// Wraps the worker that is respawned. Without this, [`Worker::respawn`] gives a worker like the inner one, without the
    /// closures.
    #[must_use]
    pub fn respawned(
        mut self,
        wrap: impl Fn(Box<dyn Worker>) -> Box<dyn Worker> + Send + Sync + 'static,
    ) -> Self {
        let wrap = Arc::new(wrap);
        self.respawn = Some(Box::new(move |inner| {
            let (respawn, wrap) = (inner.respawn()?, Arc::clone(&wrap));
            Some(Arc::new(move |token| Ok(wrap(respawn(token)?))))
        }));
        self
    }

    /// Makes it impossible to respawn the worker.
    #[must_use]
    pub fn never_respawned(mut self) -> Self {
        self.respawn = Some(Box::new(|_| None));
        self
    }

    /// The worker as a pool takes it.
    #[must_use]
    pub fn boxed(self) -> Box<dyn Worker> {
        Box::new(self)
    }

    /// Whether the closures see calls with this key.
    fn sees(&self, key: FilterKey) -> bool {
        self.probes || !key.is_probe()
    }
}

impl Worker for Intercept {
    fn info(&self) -> WorkerInfo {
        let mut info = self.inner.info();
        if let Some(change) = &self.info {
            change(&mut info);
        }
        info
    }

    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        let seen = self.sees(key);
        match &mut self.install {
            Some(install) if seen => install(self.inner.as_mut(), key, shape, banks),
            _ => self.inner.install(key, shape, banks),
        }
    }

    fn remove(&mut self, key: FilterKey) {
        let seen = self.sees(key);
        match &mut self.remove {
            Some(remove) if seen => remove(self.inner.as_mut(), key),
            _ => self.inner.remove(key),
        }
    }

    fn share(&mut self, key: FilterKey, from: FilterKey, shape: &SubtaskShape) -> Result<bool> {
        let seen = self.sees(key);
        match &mut self.share {
            Some(share) if seen => share(self.inner.as_mut(), key, from, shape),
            // A closure for `install` sees all filters, so there are none to share.
            _ if self.install.is_some() => Ok(false),
            _ => self.inner.share(key, from, shape),
        }
    }

    fn execute(&mut self, task: Task<'_>, emit: &mut dyn FnMut(usize, Values)) -> Result<()> {
        let seen = self.sees(task.key);
        match &mut self.execute {
            Some(execute) if seen => execute(self.inner.as_mut(), task, emit),
            _ => self.inner.execute(task, emit),
        }
    }

    fn install_part(&mut self, key: PartKey, part: &PartFile) -> Result<PartSignature> {
        match &mut self.install_part {
            Some(install) => install(self.inner.as_mut(), key, part),
            None => self.inner.install_part(key, part),
        }
    }

    fn remove_part(&mut self, key: PartKey) {
        self.inner.remove_part(key);
    }

    fn run_part(&mut self, key: PartKey, inputs: &[Values], cancel: &CancelToken) -> Result<Vec<Values>> {
        match &mut self.run_part {
            Some(run) => run(self.inner.as_mut(), key, inputs, cancel),
            None => self.inner.run_part(key, inputs, cancel),
        }
    }

    fn respawn(&self) -> Option<Respawn> {
        match &self.respawn {
            Some(respawn) => respawn(self.inner.as_ref()),
            None => self.inner.respawn(),
        }
    }

    fn unavailable_reason(&self) -> Option<String> {
        self.inner.unavailable_reason()
    }

    fn presence(&self) -> Option<Presence> {
        self.inner.presence()
    }

    fn lose_device(&mut self) {
        self.inner.lose_device();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::array::DType;
    use crate::ids::SubtaskId;
    use crate::worker::{CancelToken, CpuWorker, Order, Probe};

    const KEY: FilterKey = FilterKey { layer: 1, subtask: SubtaskId(0) };

    /// The calls that a worker got, by name.
    #[derive(Clone, Default)]
    struct Calls(Arc<Mutex<Vec<&'static str>>>);

    impl Calls {
        fn note(&self, call: &'static str) {
            self.0.lock().unwrap().push(call);
        }

        fn take(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    /// A worker without any ability that notes every call.
    struct Noting(Calls);

    impl Worker for Noting {
        fn info(&self) -> WorkerInfo {
            self.0.note("info");
            CpuWorker::new("noting", 1).info()
        }
        fn install(&mut self, _: FilterKey, _: &SubtaskShape, _: Values) -> Result<()> {
            self.0.note("install");
            Ok(())
        }
        fn remove(&mut self, _: FilterKey) {
            self.0.note("remove");
        }
        fn execute(&mut self, _: Task<'_>, _: &mut dyn FnMut(usize, Values)) -> Result<()> {
            self.0.note("execute");
            Ok(())
        }
        fn install_part(&mut self, _: PartKey, _: &PartFile) -> Result<PartSignature> {
            self.0.note("install_part");
            Ok(PartSignature { inputs: Vec::new(), outputs: Vec::new() })
        }
        fn remove_part(&mut self, _: PartKey) {
            self.0.note("remove_part");
        }
        fn run_part(&mut self, _: PartKey, _: &[Values], _: &CancelToken) -> Result<Vec<Values>> {
            self.0.note("run_part");
            Ok(Vec::new())
        }
        fn respawn(&self) -> Option<Respawn> {
            self.0.note("respawn");
            CpuWorker::new("noting", 1).respawn()
        }
        fn unavailable_reason(&self) -> Option<String> {
            self.0.note("unavailable_reason");
            None
        }
        fn presence(&self) -> Option<Presence> {
            self.0.note("presence");
            Some(Presence::default())
        }
        fn lose_device(&mut self) {
            self.0.note("lose_device");
        }
    }

    fn shape() -> SubtaskShape {
        use crate::conv::{ConvParams, ConvShape};
        let conv = ConvShape::new(&[1, 1, 4], &[1, 1, 2], &ConvParams::default()).unwrap();
        SubtaskShape { conv, slabs: 1, banks: 1, plain: false }
    }

    /// Calls every method once, with `key`.
    fn call_all(worker: &mut dyn Worker, key: FilterKey) {
        let (slabs, token) = (Values::F32(vec![1.0; 4]), CancelToken::new());
        let _ = worker.info();
        worker.install(key, &shape(), Values::F32(vec![1.0; 2])).unwrap();
        worker.execute(Task::new(key, &slabs, &token), &mut |_, _| {}).unwrap();
        worker.remove(key);
        let part = PartFile { bytes: Arc::from([]), memory_bytes: 0 };
        worker.install_part(PartKey(1), &part).unwrap();
        worker.run_part(PartKey(1), &[], &token).unwrap();
        worker.remove_part(PartKey(1));
        let _ = worker.respawn();
        let _ = worker.unavailable_reason();
        let _ = worker.presence();
        worker.lose_device();
    }

    const FILTERS: [&str; 3] = ["install", "execute", "remove"];
    const PARTS: [&str; 3] = ["install_part", "run_part", "remove_part"];
    const REST: [&str; 3] = ["unavailable_reason", "presence", "lose_device"];

    #[test]
    fn what_no_closure_handles_is_forwarded() {
        let calls = Calls::default();
        call_all(&mut intercept(Noting(calls.clone())), KEY);
        assert_eq!(calls.take(), [&["info"][..], &FILTERS, &PARTS, &["respawn"], &REST].concat());
    }

    /// A worker all of whose calls closures handle; the closures note the calls.
    fn handled(inner: &Calls, calls: &Calls) -> Intercept {
        let [install, remove, execute, install_part, run_part] = [(); 5].map(|()| calls.clone());
        intercept(Noting(inner.clone()))
            .with_info(|info| info.name = "handled".to_owned())
            .on_install(move |_, _, _, _| {
                install.note("install");
                Ok(())
            })
            .on_remove(move |_, _| remove.note("remove"))
            .on_execute(move |_, _, _| {
                execute.note("execute");
                Ok(())
            })
            .on_install_part(move |_, _, _| {
                install_part.note("install_part");
                Ok(PartSignature { inputs: Vec::new(), outputs: Vec::new() })
            })
            .on_run_part(move |_, _, _, _| {
                run_part.note("run_part");
                Ok(Vec::new())
            })
            .never_respawned()
    }

    #[test]
    fn closures_handle_layers_and_on_request_probes() {
        let (inner, calls) = (Calls::default(), Calls::default());
        let mut worker = handled(&inner, &calls);
        assert_eq!(worker.info().name, "handled");
        assert!(worker.respawn().is_none());
        inner.take();
        call_all(&mut worker, KEY);
        assert_eq!(calls.take(), [&FILTERS[..], &PARTS[..2]].concat());
        assert_eq!(inner.take(), [&["info", "remove_part"][..], &REST].concat());
        call_all(&mut worker, FilterKey::PROBE);
        assert_eq!(calls.take(), PARTS[..2]);
        assert_eq!(inner.take(), [&["info"][..], &FILTERS, &["remove_part"], &REST].concat());
        call_all(&mut worker.including_probes(), FilterKey::PROBE);
        assert_eq!(calls.take(), [&FILTERS[..], &PARTS[..2]].concat());
    }

    #[test]
    fn a_respawned_worker_is_wrapped_where_that_is_asked_for() {
        let fail = |inner: Box<dyn Worker>| {
            intercept(inner).including_probes().on_execute(|_, _, _| Err(crate::error::Error::Cancelled))
        };
        let passes = |worker: &dyn Worker| {
            let mut again = worker.respawn().unwrap()(&CancelToken::new()).unwrap();
            Probe::new(DType::F32).check(again.as_mut(), &CancelToken::new()).is_ok()
        };
        assert!(passes(&fail(Box::new(CpuWorker::new("cpu", 1)))));
        assert!(!passes(
            &fail(Box::new(CpuWorker::new("cpu", 1))).respawned(move |inner| fail(inner).boxed())
        ));
    }

    #[test]
    fn a_task_is_changed_field_by_field() {
        let (slabs, token) = (Values::F32(Vec::new()), CancelToken::new());
        let task = Task::new(KEY, &slabs, &token);
        assert_eq!((task.order, task.indices(3)), (Order::All, vec![0, 1, 2]));
        let each = task.with_order(Order::Each(&[2, 2]));
        assert_eq!((each.key, each.indices(3)), (KEY, vec![2, 2]));
    }
}
