//! A node whose state has diverged does not start again: the mark that says so.
//!
//! What is wrong may be in its newest snapshot, and between a start and the first comparison it would serve it.

use super::exit::{Exit, NodeError};
use std::io::Write;
use std::path::Path;

const FENCED: &str = "fenced";

/// Bar this data directory from the next start. What cannot be written is told: the node ends all the same.
pub(super) fn mark(data: &Path, why: &str) {
    let write = || {
        let mut file = std::fs::File::create(data.join(FENCED))?;
        file.write_all(why.as_bytes())?;
        file.sync_all()?;
        std::fs::File::open(data)?.sync_all()
    };
    if let Err(e) = write() {
        tracing::error!("cannot write {}, so the next start will not be refused: {e}", data.join(FENCED).display());
    }
}

/// Refuse a data directory that is barred.
pub(super) fn refuse(data: &Path) -> Result<(), NodeError> {
    let file = data.join(FENCED);
    let why = match std::fs::read(&file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(NodeError::failed(format!("cannot read {}: {e}", file.display()))),
    };
    Err(NodeError::new(Exit::Damaged, barred(data, &why)))
}

/// What the operator is told.
pub(super) fn barred(data: &Path, why: &str) -> String {
    format!(
        "{why}. Replace this node by a new one (keelfs member replace), and keep {} for a look; it does not start again \
         from there as long as the file {FENCED} is in it",
        data.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barred_directory_is_refused_with_the_reason() {
        let data = tempfile::tempdir().unwrap();
        refuse(data.path()).unwrap();
        mark(data.path(), "it has diverged at entry 7");
        let refused = refuse(data.path()).unwrap_err();
        assert_eq!(refused.exit, Exit::Damaged);
        assert!(refused.message.contains("entry 7") && refused.message.contains("member replace"), "{refused}");
    }
}
