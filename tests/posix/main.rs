//! What programs may expect of a file system, and pjdfstest and fsx do not ask: open files without a name, directories
//! that change while they are listed, maps, holes, attributes at their bounds; and all of it over two mounts at once.
//!
//! `cargo test --test posix` starts a cluster and looks at it through two mounts. `KEELFS_POSIX_DIRS=DIR[:DIR]` names
//! directories instead: of any file system, the second another mount's way to the same directory. With one directory both
//! sides are that one, so what is expected here can be held against a local file system. Words choose checks by name.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `KEELFS_POSIX_DIRS` | where to look; empty: a cluster of its own | |
//! | `KEELFS_POSIX_ENTRIES` | entries of the large directory | 1,000 |
//! | `KEELFS_POSIX_OPERATIONS` | operations of the random exerciser | 2,000 |
//! | `KEELFS_SEED` | what its random numbers start from | 1 |
//!
//! A check holds, fails, or is skipped with a reason, and the last line counts all three: this is a program of its own
//! because the usual harness of tests knows no third.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "most of it kills nodes; these checks need a cluster that is well")]
mod common;

mod attributes;
mod directories;
mod exerciser;
mod ground;
mod limits;
mod maps;
mod names;
mod nodes;
mod orphans;
mod space;
mod system;
mod writing;

use common::Cluster;
use ground::Ground;
use std::any::type_name;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

struct Check {
    name: &'static str,
    run: Box<dyn Fn(&Ground)>,
}

/// A check is named after its function.
fn check<F: Fn(&Ground) + 'static>(run: F) -> Check {
    let path = type_name::<F>();
    Check { name: path.split_once("::").map_or(path, |(_, name)| name), run: Box::new(run) }
}

fn checks() -> Vec<Check> {
    vec![
        check(orphans::an_unlinked_file_lives_on_both_sides),
        check(orphans::a_file_replaced_by_rename_lives_while_it_is_open),
        check(orphans::an_unlinked_open_file_leaves_no_name_behind),
        check(orphans::a_removed_directory_takes_nothing_in),
        check(orphans::a_process_stands_in_a_removed_directory),
        check(orphans::space_comes_back_with_the_last_close),
        check(names::an_exclusive_create_has_one_winner),
        check(names::other_creations_have_one_winner),
        check(names::what_was_removed_there_is_missing_here),
        check(names::a_replaced_file_is_never_seen_half),
        check(names::an_exchange_leaves_no_gap),
        check(names::rename_keeps_to_its_flags),
        check(names::hard_links_are_counted),
        check(names::a_name_is_any_255_bytes),
        check(names::a_symlink_holds_a_path),
        check(directories::a_listing_has_what_was_there_all_the_time),
        check(directories::positions_in_a_listing_last),
        check(directories::a_listing_goes_on_while_its_entries_go),
        check(space::holes_and_data_are_told_apart),
        check(space::allocation_keeps_to_its_modes),
        check(space::ranges_are_copied),
        check(space::copies_end_at_the_end_of_the_file),
        check(space::a_clone_is_made_or_refused),
        check(space::blocks_tell_what_a_file_takes),
        check(space::df_tells_what_files_take),
        check(writing::appends_from_both_sides_are_whole),
        check(writing::a_write_is_seen_whole_or_not_at_all),
        check(writing::direct_io_is_seen),
        check(writing::synchronous_writes_are_seen),
        check(writing::pages_do_not_outlive_an_open),
        check(writing::pages_do_not_outlive_a_write),
        check(writing::a_program_runs_as_it_was_written_there),
        check(limits::sizes_beyond_four_gibibytes),
        check(limits::sizes_out_of_bounds_are_refused),
        check(limits::a_file_ends_at_sixteen_tebibytes),
        check(limits::a_process_keeps_to_its_file_size_limit),
        check(maps::a_shared_map_and_calls_agree_on_one_side),
        check(maps::stores_writes_and_appends_into_one_page_lose_nothing),
        check(maps::what_msync_has_written_is_seen_there),
        check(maps::a_private_map_changes_no_file),
        check(maps::a_map_behind_the_end_is_not_written),
        check(attributes::times_come_back_as_they_were_set),
        check(attributes::now_and_omit_are_kept_apart),
        check(attributes::reading_leaves_the_access_time),
        check(attributes::modes_and_owners_are_seen_there),
        check(attributes::statx_agrees_with_stat),
        check(attributes::xattrs_keep_to_their_flags),
        check(attributes::xattrs_of_every_size_come_back),
        check(attributes::xattr_names_are_bytes),
        check(attributes::xattr_buffers_may_be_short),
        check(nodes::a_fifo_carries_bytes),
        check(nodes::a_socket_takes_connections),
        check(nodes::devices_are_stored),
        check(nodes::a_running_program_is_not_written),
        check(nodes::a_file_begins_without_a_name),
        check(nodes::inotify_tells_of_local_changes),
        check(exerciser::a_model_agrees_after_every_step),
    ]
}

/// Where a check failed and what it said, of all its threads, for the lines behind its name.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let chosen: Vec<Check> = checks()
        .into_iter()
        .filter(|check| wanted.is_empty() || wanted.iter().any(|word| check.name.contains(word.as_str())))
        .collect();
    if words.iter().any(|word| word == "--list") {
        chosen.iter().for_each(|check| println!("{}: test", check.name));
        return ExitCode::SUCCESS;
    }
    // A filter that was meant for other tests starts no cluster.
    if chosen.is_empty() {
        println!("posix: no check has one of these words in its name: {wanted:?}");
        return ExitCode::SUCCESS;
    }
    std::panic::set_hook(Box::new(|panic| {
        PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(panic.to_string());
    }));
    match catch_unwind(AssertUnwindSafe(|| run_all(&chosen))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) => {
            println!("posix: FAIL: cannot begin or end: {}", panics());
            ExitCode::FAILURE
        }
    }
}

/// False if a check failed.
fn run_all(chosen: &[Check]) -> bool {
    let (places, cluster) = places();
    let (mut held, mut failed, mut skipped) = (0, 0, 0);
    let begun = Instant::now();
    for (number, check) in chosen.iter().enumerate() {
        match run(&places, number, check) {
            Verdict::Held => held += 1,
            Verdict::Failed => failed += 1,
            Verdict::Skipped => skipped += 1,
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("posix: {held} held, {failed} failed, {skipped} skipped, {seconds:.1} s");
    if let Some(cluster) = cluster {
        end(cluster, failed > 0);
    }
    failed == 0
}

/// A cluster that is dropped by a panic shows what its nodes had to say.
fn end(cluster: Cluster, failed: bool) {
    let ended = catch_unwind(AssertUnwindSafe(move || {
        assert!(!failed, "a check failed");
        cluster.expect_agreement();
    }));
    if let Err(panic) = ended
        && !failed
    {
        std::panic::resume_unwind(panic);
    }
}

enum Verdict {
    Held,
    Failed,
    Skipped,
}

fn run(places: &[PathBuf], number: usize, check: &Check) -> Verdict {
    let begun = Instant::now();
    let ground = catch_unwind(|| Ground::new(places, number)).unwrap_or_else(|_| {
        panic!("no place for {}: {}", check.name, panics());
    });
    let outcome = catch_unwind(AssertUnwindSafe(|| (check.run)(&ground)));
    let seconds = begun.elapsed().as_secs_f64();
    let (notes, skipped) = ground.end();
    let (verdict, word) = match (&outcome, &skipped) {
        (Err(_), _) => (Verdict::Failed, "FAIL".to_owned()),
        (Ok(()), Some(reason)) => (Verdict::Skipped, format!("skipped: {reason}")),
        (Ok(()), None) => (Verdict::Held, "ok".to_owned()),
    };
    println!("{:<62} {seconds:6.1} s  {word}", check.name);
    for note in notes {
        println!("    {note}");
    }
    if outcome.is_err() {
        println!("    {}", panics().replace('\n', "\n    "));
    }
    verdict
}

fn panics() -> String {
    std::mem::take(&mut *PANICS.lock().unwrap_or_else(PoisonError::into_inner)).join("\n")
}

/// The directories to look at: those that the environment names, or two mounts of a new cluster.
fn places() -> (Vec<PathBuf>, Option<Cluster>) {
    let named = std::env::var("KEELFS_POSIX_DIRS").unwrap_or_default();
    let named: Vec<PathBuf> = named.split(':').filter(|name| !name.is_empty()).map(directory).collect();
    match named.as_slice() {
        [] => {
            let cluster = Cluster::start(5, [1, 2]);
            return (vec![cluster.at(1).to_owned(), cluster.at(2).to_owned()], Some(cluster));
        }
        [one] => println!("posix: {} (one directory: both sides are the same mount)", one.display()),
        [one, other] => println!("posix: {} and {} (two mounts)", one.display(), other.display()),
        more => panic!("KEELFS_POSIX_DIRS names {} directories; it takes DIR or DIR:DIR", more.len()),
    }
    (named, None)
}

/// With its whole path, because some checks start programs in other directories.
fn directory(name: &str) -> PathBuf {
    PathBuf::from(name).canonicalize().unwrap_or_else(|e| panic!("KEELFS_POSIX_DIRS: cannot use {name}: {e}"))
}
