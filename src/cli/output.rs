//! What goes to standard output: text for people or JSON for programs, never both.
//!
//! Standard error takes errors, and progress while it is a terminal. A reader that has gone away (`keelfs … | head`) ends
//! the verb without an error.

use crate::cli::error::{CliError, CliResult, Tried};
use serde::Serialize;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};

#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
}

impl Output {
    /// One result: `value` as JSON or else `text`, each with a newline.
    pub fn show(self, value: &impl Serialize, text: impl FnOnce() -> String) -> CliResult {
        let line = match self.json {
            true => serde_json::to_string_pretty(value).tried(|| "cannot write the result as JSON".into())?,
            false => text(),
        };
        raw(line.as_bytes())?;
        raw(b"\n").map(drop)
    }

    /// A line on the way, for people only.
    pub fn say(self, line: &str) -> CliResult {
        if self.json { Ok(()) } else { raw(format!("{line}\n").as_bytes()).map(drop) }
    }

    pub fn error(self, error: &CliError) {
        let text = match self.json {
            true => serde_json::json!({ "error": error.message, "exit": error.exit as u8 }).to_string(),
            false => format!("keelfs: {error}"),
        };
        let _ = writeln!(stderr(), "{text}");
    }
}

/// Bytes as they are. `false`: nobody reads any more.
pub fn raw(bytes: &[u8]) -> CliResult<bool> {
    let mut out = stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(why) if why.kind() == ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true).tried(|| "cannot write to standard output".into()),
    }
}

/// A table for people. Columns in which every cell is `-` are left out.
pub fn columns<const N: usize>(heads: [&str; N], cells: Vec<[String; N]>) -> String {
    let known = |column: usize| cells.iter().any(|row| row[column] != "-");
    let rows: Vec<[String; N]> = std::iter::once(heads.map(String::from)).chain(cells.iter().cloned()).collect();
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(|column| if known(column) { widest(column) } else { 0 }).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).filter(|(_, width)| **width > 0);
        let text: Vec<String> = cells.map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A warning that does not stop the verb.
pub fn warn(line: &str) {
    let _ = writeln!(stderr(), "keelfs: {line}");
}

/// A line on standard error that is written over and over while something takes its time; nothing in a pipe.
pub struct Progress {
    shown: bool,
}

impl Progress {
    pub fn new() -> Progress {
        Progress { shown: false }
    }

    pub fn show(&mut self, line: &str) {
        if stderr().is_terminal() {
            self.shown = true;
            let _ = write!(stderr(), "\r\x1b[K{line}").and_then(|()| stderr().flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(stderr(), "\r\x1b[K").and_then(|()| stderr().flush());
        }
    }
}
