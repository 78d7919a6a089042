//! Listings of directories that change meanwhile (POSIX, readdir: what is there all the time comes once; the rest may).

use crate::common::rounds;
use crate::ground::Ground;
use crate::system::Listing;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Threads that fill a large directory, from both sides.
const FILLERS: usize = 8;

/// Holds [V5].
pub fn a_listing_has_what_was_there_all_the_time(ground: &Ground) {
    let entries = rounds("KEELFS_POSIX_ENTRIES", 1000);
    fill(ground, "stay", entries);
    fill(ground, "go", entries / 10);
    let (over, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let listings = std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                if number < entries / 10 {
                    fs::remove_file(ground.here.join(name("go", number))).expect("an unlink");
                }
                File::create_new(ground.here.join(name("come", number))).expect("a new file");
                changes.fetch_add(1, Ordering::Relaxed);
            }
        });
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut listings = 0;
            while listings < 3 || changes.load(Ordering::Relaxed) < 50 {
                assert!(!churn.is_finished(), "the other side's changes failed");
                expect_stayers(&ground.there, entries);
                listings += 1;
            }
            listings
        }));
        over.store(true, Ordering::Relaxed);
        churn.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        looked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    ground.note(format!("{listings} listings of {entries} entries during {} changes", changes.into_inner()));
    empty(ground);
}

fn name(sort: &str, number: usize) -> String {
    format!("{sort}-{number:06}")
}

fn fill(ground: &Ground, sort: &str, entries: usize) {
    std::thread::scope(|scope| {
        for filler in 0..FILLERS {
            scope.spawn(move || {
                let side = if filler % 2 == 0 { &ground.here } else { &ground.there };
                for number in (filler..entries).step_by(FILLERS) {
                    File::create_new(side.join(name(sort, number))).expect("a new file");
                }
            });
        }
    });
}

/// By many at once: a hundred thousand one after another would take longer than the check.
fn empty(ground: &Ground) {
    let names: Vec<String> = Listing::open(&ground.here).collect();
    std::thread::scope(|scope| {
        for part in names.chunks(names.len().div_ceil(FILLERS).max(1)) {
            scope.spawn(move || {
                part.iter().for_each(|name| fs::remove_file(ground.here.join(name)).expect("an unlink"))
            });
        }
    });
    assert_eq!(Listing::open(&ground.there).count(), 0, "everything was removed");
}

fn expect_stayers(directory: &Path, entries: usize) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for name in Listing::open(directory) {
        *seen.entry(name).or_default() += 1;
    }
    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).take(5).collect();
    assert!(twice.is_empty(), "more than once in one listing: {twice:?}");
    let missing: Vec<_> =
        (0..entries).map(|number| name("stay", number)).filter(|name| !seen.contains_key(name)).collect();
    let first = &missing[..missing.len().min(5)];
    assert!(
        missing.is_empty(),
        "{} of {entries} entries were there all the time and missing: {first:?}…",
        missing.len()
    );
}

/// Holds [V5].
pub fn positions_in_a_listing_last(ground: &Ground) {
    fill(ground, "file", 600);
    let mut listing = Listing::open(&ground.there);
    let mut order = Vec::new();
    loop {
        let position = listing.tell();
        let Some(name) = listing.next() else { break };
        order.push((position, name));
    }
    assert_eq!(order.len(), 600);
    for at in [599, 300, 1, 0, 450, 299] {
        let (position, expected) = &order[at];
        listing.seek(*position);
        assert_eq!(listing.next().as_ref(), Some(expected), "entry {at}");
    }
    // what is removed on the other side, before a position or at it, moves nothing
    for (_, name) in &order[100..=300] {
        fs::remove_file(ground.here.join(name)).expect("an unlink");
    }
    let mut other = Listing::open(&ground.there);
    other.seek(order[300].0);
    let rest: Vec<String> = other.by_ref().collect();
    let expected: Vec<String> = order[301..].iter().map(|(_, name)| name.clone()).collect();
    assert_eq!(rest, expected);
    other.rewind();
    File::create_new(ground.here.join("late")).expect("a new file");
    other.rewind();
    let names: Vec<String> = other.by_ref().collect();
    assert_eq!(names.len(), 600 - 201 + 1);
    assert!(names.contains(&"late".to_owned()), "rewinddir looks again");
}

/// What `rm -r` does.
pub fn a_listing_goes_on_while_its_entries_go(ground: &Ground) {
    fill(ground, "file", 600);
    let mut removed = 0;
    for name in Listing::open(&ground.there) {
        fs::remove_file(ground.there.join(name)).expect("an unlink");
        removed += 1;
    }
    assert_eq!(removed, 600);
    assert_eq!(Listing::open(&ground.here).count(), 0);
}
