//! Does `SEMANTICS.md` promise what tests hold? Rows and quotations are compared; the promises themselves are held by the
//! tests that quote them, in a comment right in front of the function, as in `/// Holds [V1].`

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

/// The rows that tests below a directory quote, and scripts in their comments.
fn collect(directory: &Path, quoted: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, quoted);
        } else if !path.ends_with("semantics.rs") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let below = |top: &str| path.starts_with(Path::new(env!("CARGO_MANIFEST_DIR")).join(top));
            match below("scripts") {
                true => quoted.extend(text.lines().filter_map(|line| line.strip_prefix('#')).flat_map(quotations)),
                false => quoted.extend(quotations_of_tests(&text, below("tests"))),
            }
        }
    }
}

/// What stands in front of functions that are tests, or are called by one (`all`: all of the file), or heads a file of
/// tests.
fn quotations_of_tests(text: &str, all: bool) -> Vec<String> {
    let (mut found, mut pending, mut is_test) = (vec![], vec![], false);
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            pending.extend(quotations(comment));
        } else if let Some(head) = line.strip_prefix("//!").filter(|_| all) {
            found.extend(quotations(head));
        } else if line.starts_with("#[") {
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
        } else {
            let of_this = std::mem::take(&mut pending);
            let is_function = line.starts_with("fn ") || line.starts_with("pub fn ") || line.starts_with("async fn ");
            if is_function && (all || is_test) {
                found.extend(of_this);
            }
            is_test = false;
        }
    }
    found
}

#[test]
fn only_tests_quote() {
    let quote = |text: &str, all| quotations_of_tests(text, all);
    assert_eq!(quote("/// Holds [V1], [V2].\n#[test]\nfn one() {}", false), ["V1", "V2"]);
    assert_eq!(quote("/// Holds [V1].\nfn one() {}", false), [""; 0], "no test");
    assert_eq!(quote("/// Holds [V1].\npub fn one() {}", true), ["V1"]);
    assert_eq!(quote("/// As [V1].\nstruct One;\nfn one() {\n// [V2]\n}", true), [""; 0], "no functions");
}

fn quotations(comment: &str) -> impl Iterator<Item = String> {
    comment
        .split('[')
        .skip(1)
        .filter_map(|rest| rest.split_once(']'))
        .map(|(id, _)| id.to_owned())
        .filter(|id| is_id(id))
}
