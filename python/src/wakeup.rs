//! Signals that arrive while the main thread of Python works in the library.
//!
//! Python's handlers run on its main thread, between two instructions. Where they arrive while that thread computes or waits
//! in Rust, Python writes their numbers to a file descriptor that a program may choose (`signal.set_wakeup_fd`). A thread of
//! this module reads it, and cancels the run, so that the main thread returns and Python handles the signal.
//!
//! Invariant: the descriptor of another part of the program, such as the event loop of asyncio, is left as it is.

#[cfg(not(unix))]
pub(crate) use self::elsewhere::Watch;
#[cfg(unix)]
pub(crate) use self::unix::Watch;

#[cfg(unix)]
mod unix {
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex, OnceLock, PoisonError};

    use fcdcc::CancelToken;
    use pyo3::prelude::*;
    use pyo3::sync::PyOnceLock;
    use pyo3::types::PyDict;

    /// The run of the main thread, and whether a signal has arrived in it.
    static CURRENT: Mutex<Option<(CancelToken, Arc<AtomicBool>)>> = Mutex::new(None);

    fn current(run: Option<(CancelToken, Arc<AtomicBool>)>) {
        *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = run;
    }

    /// A run of the main thread that signals cancel.
    pub(crate) struct Watch {
        arrived: Arc<AtomicBool>,
    }

    impl Watch {
        /// Has signals cancel `token`, until [`Watch::finish`]. `None` where that is not possible, or another part of the
        /// program waits for signals in the same way.
        pub(crate) fn start(py: Python<'_>, token: &CancelToken) -> PyResult<Option<Self>> {
            let Some(descriptor) = descriptor() else { return Ok(None) };
            let previous = set_wakeup(py, descriptor)?;
            if previous != -1 {
                set_wakeup(py, previous)?;
                return Ok(None);
            }
            let arrived = Arc::new(AtomicBool::new(false));
            current(Some((token.clone(), Arc::clone(&arrived))));
            Ok(Some(Self { arrived }))
        }

        /// Ends the watch; whether a signal arrived.
        pub(crate) fn finish(self, py: Python<'_>) -> PyResult<bool> {
            current(None);
            set_wakeup(py, -1)?;
            Ok(self.arrived.load(Ordering::Acquire))
        }
    }

    /// `signal.set_wakeup_fd`, which returns the descriptor that was set before.
    fn set_wakeup(py: Python<'_>, descriptor: i32) -> PyResult<i32> {
        static FUNCTION: PyOnceLock<(Py<PyAny>, Py<PyDict>)> = PyOnceLock::new();
        let (function, quiet) = FUNCTION.get_or_try_init(py, || {
            let quiet = PyDict::new(py);
            quiet.set_item("warn_on_full_buffer", false)?;
            PyResult::Ok((py.import("signal")?.getattr("set_wakeup_fd")?.unbind(), quiet.unbind()))
        })?;
        // What no descriptor is, is never full.
        let quiet = (descriptor != -1).then(|| quiet.bind(py));
        function.bind(py).call((descriptor,), quiet)?.extract()
    }

    /// The descriptor that the thread of this module reads from the other end; `None` if there is no such thread.
    fn descriptor() -> Option<i32> {
        static DESCRIPTOR: OnceLock<Option<i32>> = OnceLock::new();
        *DESCRIPTOR.get_or_init(|| {
            let (mut reader, writer) = UnixStream::pair().ok()?;
            writer.set_nonblocking(true).ok()?;
            let listen = move || {
                let mut numbers = [0; 64];
                while reader.read(&mut numbers).is_ok_and(|count| count > 0) {
                    let run = CURRENT.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    if let Some((token, arrived)) = run {
                        arrived.store(true, Ordering::Release);
                        token.cancel();
                    }
                }
            };
            std::thread::Builder::new().name("fcdcc signals".to_owned()).spawn(listen).ok()?;
            // Open as long as the process: Python may write to it at any time.
            Some(writer.into_raw_fd())
        })
    }
}

#[cfg(not(unix))]
mod elsewhere {
    use std::convert::Infallible;

    use fcdcc::CancelToken;
    use pyo3::prelude::*;

    /// Never exists on this system.
    pub(crate) struct Watch(Infallible);

    impl Watch {
        #[expect(clippy::unnecessary_wraps, reason = "the signature of the other systems")]
        pub(crate) fn start(_: Python<'_>, _: &CancelToken) -> PyResult<Option<Self>> {
            Ok(None)
        }

        pub(crate) fn finish(self, _: Python<'_>) -> PyResult<bool> {
            match self.0 {}
        }
    }
}
