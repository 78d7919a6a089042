//! Does `SEMANTICS.md` promise what tests hold? Rows and quotations are compared; the promises themselves are held by the
//! tests that quote them, as in `// [V1]`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const HELD: &str = "✔";
const STATED: &str = "○";

#[test]
fn every_held_row_is_quoted_and_every_quotation_is_a_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("SEMANTICS.md")).expect("the page");
    let rows: BTreeMap<&str, &str> = page.lines().filter_map(row).collect();
    assert!(rows.len() > 40, "the page has lost its rows: {}", rows.len());
    let mut quoted = BTreeSet::new();
    for place in ["src", "tests", "scripts"] {
        collect(&root.join(place), &mut quoted);
    }
    for (id, mark) in &rows {
        assert!([HELD, STATED].contains(mark), "row {id} is marked '{mark}'");
    }
    let unheld: Vec<_> = rows.iter().filter(|(id, mark)| **mark == HELD && !quoted.contains(**id)).collect();
    assert!(unheld.is_empty(), "promised as tested, and no test says so: {unheld:?}");
    let unknown: Vec<_> = quoted.iter().filter(|id| !rows.contains_key(id.as_str())).collect();
    assert!(unknown.is_empty(), "quoted, and not on the page: {unknown:?}");
}

/// `| V1 | text | ✔ |`
fn row(line: &str) -> Option<(&str, &str)> {
    let cells: Vec<_> = line.trim().strip_prefix('|')?.strip_suffix('|')?.split(" | ").map(str::trim).collect();
    let (first, last) = (cells.first()?, cells.last()?);
    is_id(first).then_some((*first, *last))
}

fn is_id(word: &str) -> bool {
    let mut letters = word.chars();
    letters.next().is_some_and(|c| c.is_ascii_uppercase()) && letters.as_str().parse::<u8>().is_ok()
}

/// The rows that comments quote, of Rust and of the shell, below a directory.
fn collect(directory: &Path, quoted: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, quoted);
        } else if !path.ends_with("semantics.rs") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines = text.lines().map(str::trim);
            let comments = lines.filter_map(|line| line.strip_prefix("//").or(line.strip_prefix("# ")));
            quoted.extend(comments.flat_map(quotations));
        }
    }
}

fn quotations(comment: &str) -> impl Iterator<Item = String> {
    comment
        .split('[')
        .skip(1)
        .filter_map(|rest| rest.split_once(']'))
        .map(|(id, _)| id.to_owned())
        .filter(|id| is_id(id))
}
