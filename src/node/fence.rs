//! A node whose state has diverged does not start again: the mark that says so.
//!
//! What is wrong may be in its newest snapshot, and between a start and the first comparison it would serve it.

use super::exit::{Exit, NodeError};
use super::identity::release_reserve;
use crate::log::is_full;
use std::io::{self, Write};
use std::path::Path;

const FENCED: &str = "fenced";
/// How often the mark is tried on a full disk: what fills the reserve up again may be faster than we are.
const TRIES: usize = 4;

/// Bar this data directory from the next start. What cannot be written is told: the node ends all the same.
pub(super) fn mark(data: &Path, why: &str) {
    let write = || {
        let mut file = std::fs::File::create(data.join(FENCED))?;
        file.write_all(why.as_bytes())?;
        file.sync_all()?;
        std::fs::File::open(data)?.sync_all()
    };
    if let Err(e) = with_reserve(data, write) {
        tracing::error!("cannot write {}, so the next start will not be refused: {e}", data.join(FENCED).display());
    }
}

/// Do this; on a full disk with the room of the reserve.
fn with_reserve(data: &Path, mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut tries = 1..TRIES;
    loop {
        match write() {
            Err(e) if is_full(&e) && tries.next().is_some() => {
                // It may be on its way back: then there is room, or it is there to be released the next time.
                let _ = release_reserve(data);
            }
            done => return done,
        }
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

    #[test]
    fn a_full_disk_gives_the_reserve_for_the_mark() {
        let data = tempfile::tempdir().unwrap();
        let reserve = data.path().join("reserve");
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        // Filled up again twice, before there is room.
        let mut refills = 3;
        let write = || {
            let found = reserve.exists();
            if refills > 0 {
                refills -= 1;
                std::fs::write(&reserve, "blocks").unwrap();
                return Err(full());
            }
            if found { Err(full()) } else { Ok(()) }
        };
        with_reserve(data.path(), write).unwrap();
        assert!(!reserve.exists());
        let mut tried = 0;
        let never = || {
            tried += 1;
            Err(full())
        };
        assert!(is_full(&with_reserve(data.path(), never).unwrap_err()));
        assert_eq!(tried, TRIES);
    }
}
