//! Progress bars on stderr, a step for each layer or run. Hidden if stderr is no terminal, or with --quiet.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Console;

/// A progress bar. It disappears at the end; results are printed by other code.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(console: Console, what: &'static str) -> Self {
        let target = if console.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target).with_message(what);
        let style = ProgressStyle::with_template("{msg:10} {bar:30} {pos}/{len} {prefix} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        // Updates the time during a long layer. If the bar is hidden, or no thread can be started (the bar would panic),
        // it is updated only by steps.
        if !bar.is_hidden() && std::thread::Builder::new().spawn(|| {}).is_ok() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self(bar)
    }

    /// Reports that the next layer is done.
    #[cfg(feature = "onnx")]
    pub(crate) fn step(&self, progress: fcdcc::model::Progress<'_>) {
        self.steps(progress.done, progress.total, progress.layer);
    }

    /// Hides the bar while `say` prints.
    pub(crate) fn suspend(&self, say: impl FnOnce()) {
        self.0.suspend(say);
    }

    /// Reports that `done` steps are done, the last of them on `what`.
    pub(crate) fn steps(&self, done: usize, total: usize, what: &str) {
        self.0.set_length(total as u64);
        self.0.set_position(done as u64);
        self.0.set_prefix(what.to_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
