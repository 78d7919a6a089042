//! What the process has to say, on standard error.

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

/// Keeps one error of fuser's from the log: that the kernel no longer knew a request when it was answered. That is how a
/// caller ends who was killed meanwhile. Any other error in answering is one, and is shown.
struct KilledCallers;

impl<S: Subscriber> Layer<S> for KilledCallers {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        // What comes from the crate `log`, as all of fuser's does, has this target and its own in a field.
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
        let unknown = std::io::Error::from_raw_os_error(libc::ENOENT);
        self.target == "fuser::reply" && self.message == format!("Failed to send FUSE reply: {unknown}")
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

    /// The event is made here as tracing-log makes it of what fuser logs.
    #[test]
    fn only_the_answers_to_killed_callers_are_not_shown() {
        let lines = Lines::default();
        let writer = lines.clone();
        let writer = move || writer.clone();
        let subscriber = tracing_subscriber::registry().with(KilledCallers).with(fmt::layer().with_writer(writer));
        tracing::subscriber::with_default(subscriber, || {
            let say = |target: &str, errno: i32| {
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::error!(target: "log", { log.target = target }, "Failed to send FUSE reply: {error}");
            };
            say("fuser::reply", libc::ENOENT);
            assert_eq!(lines.0.lock().unwrap().len(), 0);
            say("fuser::reply", libc::EINVAL);
            say("fuser::session", libc::ENOENT);
            tracing::error!("another");
        });
        let shown = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(shown.lines().count(), 3, "{shown}");
    }
}
