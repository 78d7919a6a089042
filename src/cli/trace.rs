//! What the process has to say, on standard error.

use crate::fuse::log_of_killed_caller;
use std::fmt::Debug;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// Say what `KEELFS_LOG` asks for, or else what `default` does.
pub fn start(default: &str) {
    let filter = EnvFilter::try_from_env("KEELFS_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(filter).with(KilledCallers).with(lines).init();
}

/// Keeps one error of the FUSE library from the log: the answer to a caller who was killed meanwhile. Any other error in
/// answering is one, and is shown.
struct KilledCallers;

impl<S: Subscriber> Layer<S> for KilledCallers {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        // What comes from the crate `log`, as all of that library's does, has this target and its own in a field.
        if event.metadata().target() != "log" {
            return true;
        }
        let mut said = Said::default();
        event.record(&mut said);
        !said.of_killed_caller()
    }
}

#[derive(Default)]
struct Said {
    target: String,
    message: String,
}

impl Said {
    fn of_killed_caller(&self) -> bool {
        let (target, message) = log_of_killed_caller();
        self.target == target && self.message == message
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.target = value.to_owned();
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The events are made here as tracing-log makes them of what is logged through `log`.
    #[test]
    fn only_the_answers_to_killed_callers_are_not_shown() {
        let lines = Lines::default();
        let writer = lines.clone();
        let writer = move || writer.clone();
        let subscriber = tracing_subscriber::registry().with(KilledCallers).with(fmt::layer().with_writer(writer));
        let (target, message) = log_of_killed_caller();
        tracing::subscriber::with_default(subscriber, || {
            let say = |target: &str, message: &str| {
                tracing::error!(target: "log", { log.target = target }, "{message}");
            };
            say(target, &message);
            assert_eq!(lines.0.lock().unwrap().len(), 0);
            say(target, "Failed to send FUSE reply: Invalid argument (os error 22)");
            say("elsewhere", &message);
            tracing::error!("{message}");
        });
        let shown = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(shown.lines().count(), 3, "{shown}");
    }
}
