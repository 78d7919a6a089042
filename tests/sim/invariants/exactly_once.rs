//! Exactly once: every append that was acknowledged is in the file once, one whose outcome is unknown at most once, one
//! that was said not to have been made never; in an order that agrees with real time; and nothing goes away again.
//!
//! Source: Ongaro's thesis, section 6.3.

use super::Held;
use crate::diary::Diary;
use crate::linearizable::Call;
use std::collections::{HashMap, HashSet};

pub fn holds(diary: &Diary) -> Held {
    let (appends, mut reads) = diary.with(|pages| {
        let mut appends = pages.appends.by_object();
        let mut reads = pages.append_reads.by_object();
        (appends.remove(&0).unwrap_or_default(), reads.remove(&0).unwrap_or_default())
    });
    reads.retain(|read| read.end.is_some());
    for read in &reads {
        judge_read(read, &appends)?;
    }
    grows_only(&reads)?;
    let longest = reads.iter().filter_map(|read| read.end.as_ref()).map(|(_, tokens)| tokens).max_by_key(|t| t.len());
    longest.map_or(Ok(()), |tokens| in_order(&appends, tokens))
}

fn judge_read(read: &Call<(), Vec<u64>>, appends: &[Call<u64, ()>]) -> Held {
    let Some((end, tokens)) = &read.end else { return Ok(()) };
    let there: HashSet<u64> = tokens.iter().copied().collect();
    if there.len() != tokens.len() {
        let mut counted = HashMap::new();
        tokens.iter().for_each(|token| *counted.entry(token).or_insert(0) += 1);
        let twice = counted.into_iter().find(|(_, count)| *count > 1);
        return Err(format!("exactly once: an append was executed more than once (token, times): {twice:?}"));
    }
    let possible: HashSet<u64> =
        appends.iter().filter(|append| append.begin <= *end).map(|append| append.input).collect();
    if let Some(token) = tokens.iter().find(|token| !possible.contains(token)) {
        return Err(format!("exactly once: at {end} ms a reader saw {token:x}, which nobody can have appended"));
    }
    let due = |append: &&Call<u64, ()>| append.end.as_ref().is_some_and(|(at, ())| *at < read.begin);
    match appends.iter().filter(due).find(|append| !there.contains(&append.input)) {
        None => Ok(()),
        Some(lost) => {
            Err(format!("exactly once: a reader at {} ms misses what was acknowledged: {lost:?}", read.begin))
        }
    }
}

/// Readers see prefixes of one sequence, and a later one not less.
fn grows_only(reads: &[Call<(), Vec<u64>>]) -> Held {
    let mut seen: Vec<(u64, u64, &Vec<u64>)> =
        reads.iter().filter_map(|read| read.end.as_ref().map(|(end, tokens)| (read.begin, *end, tokens))).collect();
    seen.sort_by_key(|(_, _, tokens)| tokens.len());
    for pair in seen.windows(2) {
        if !pair[1].2.starts_with(pair[0].2) {
            return Err(format!("exactly once: readers at {} and {} ms saw two orders", pair[0].1, pair[1].1));
        }
    }
    // By length: whoever saw less must not have begun after one that saw more had ended.
    let mut begun_last = 0;
    for (begin, end, tokens) in &seen {
        if begun_last > *end {
            return Err(format!(
                "exactly once: a reader at {begun_last} ms saw less than the {} of one at {end} ms",
                tokens.len()
            ));
        }
        begun_last = begun_last.max(*begin);
    }
    Ok(())
}

fn in_order(appends: &[Call<u64, ()>], tokens: &[u64]) -> Held {
    let calls: HashMap<u64, &Call<u64, ()>> = appends.iter().map(|append| (append.input, append)).collect();
    let mut begun_last = 0;
    for call in tokens.iter().filter_map(|token| calls.get(token)) {
        if call.end.as_ref().is_some_and(|(end, ())| *end < begun_last) {
            return Err(format!("exactly once: {call:?} lies behind an append that began at {begun_last} ms"));
        }
        begun_last = begun_last.max(call.begin);
    }
    Ok(())
}
