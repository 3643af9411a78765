//! Log records of the library for Python's `logging`.
//!
//! Records are queued, and a thread of their own hands them to the loggers: code that logs never waits for the interpreter.
//! Relevant if you change which records come. Where the queue is full, records are dropped.
//!
//! Invariant: only the thread of the records calls Python.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Records that may wait; of more, the newest are dropped.
const QUEUE: usize = 4096;

/// The least level of Python's `logging` that is passed on, in tens: 10 debug, 20 info, 30 warning, 40 error.
static LEAST: AtomicU8 = AtomicU8::new(30);

struct Record {
    level: u8,
    target: &'static str,
    text: String,
}

/// Level numbers of Python's `logging`; there is none for traces, which get 5.
fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

/// Queues events.
struct Queue(Sender<Record>);

/// Whether an event comes from this project.
fn is_own(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("fcdcc")
}

impl<S: Subscriber> Layer<S> for Queue {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.is_event() && is_own(metadata) && number(*metadata.level()) >= LEAST.load(Ordering::Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut text = Text::default();
        event.record(&mut text);
        let record =
            Record { level: number(*metadata.level()), target: metadata.target(), text: text.finish() };
        // A full queue drops the record.
        let _ = self.0.try_send(record);
    }
}

/// The message of an event, then its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(self) -> String {
        if self.fields.is_empty() { self.message } else { format!("{} ({})", self.message, self.fields) }
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            let separator = if self.fields.is_empty() { "" } else { ", " };
            let _ = write!(self.fields, "{separator}{}={value:?}", field.name());
        }
    }
}

/// Hands the records to Python's loggers, until the interpreter ends.
fn deliver(records: &Receiver<Record>) {
    for record in records {
        let logger = record.target.replace("::", ".");
        let delivered = Python::try_attach(|py| {
            let logged = py
                .import("logging")
                .and_then(|logging| logging.call_method1("getLogger", (logger,)))
                .and_then(|logger| logger.call_method1("log", (record.level, "%s", record.text)));
            if let Err(error) = logged {
                error.write_unraisable(py, None);
            }
        });
        if delivered.is_none() {
            return;
        }
    }
}

/// Begins to pass records on; does nothing where another part of the process already receives them.
#[pyfunction]
pub(crate) fn start_logging() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        let (sender, records) = bounded(QUEUE);
        let subscriber = tracing_subscriber::registry().with(Queue(sender));
        if tracing::subscriber::set_global_default(subscriber).is_ok() {
            // Without a thread the queue fills up, and records are dropped.
            let _ = std::thread::Builder::new().name("fcdcc log".to_owned()).spawn(move || deliver(&records));
        }
    });
}

/// Sets the least level that is passed on, as Python's `logging` numbers it.
#[pyfunction]
pub(crate) fn log_level(level: i64) {
    let level = u8::try_from(level.clamp(0, 255)).unwrap_or(u8::MAX);
    if LEAST.swap(level, Ordering::Relaxed) != level {
        tracing::callsite::rebuild_interest_cache();
    }
}
