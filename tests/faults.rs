//! Does `FAULTS.md` name tests that exist? Each row names what holds it, as `file::function`, or says in words why nothing
//! does. That the tests hold what the row says is for its reader; that they are there, and run, is seen here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Rows of the page.
const FAULTS: usize = 50;
/// What begins a cell that names no test.
const UNSHOWN: &str = "not shown:";

#[test]
fn every_fault_names_tests_that_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("FAULTS.md")).expect("the page");
    let rows: Vec<(usize, &str)> = page.lines().filter_map(row).collect();
    let numbers: Vec<usize> = rows.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=FAULTS).collect::<Vec<_>>(), "each fault has its row");
    let wrong: Vec<String> = rows.iter().flat_map(|(number, cell)| faulty(root, *number, cell)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `| 12 | fault | what happens | tests |`
fn row(line: &str) -> Option<(usize, &str)> {
    let cells: Vec<_> = line.trim().strip_prefix('|')?.strip_suffix('|')?.split(" | ").map(str::trim).collect();
    Some((cells.first()?.parse().ok()?, *cells.last()?))
}

/// What is wrong with the last cell of a row.
fn faulty(root: &Path, number: usize, cell: &str) -> Vec<String> {
    if cell.starts_with(UNSHOWN) && cell.len() > UNSHOWN.len() + 10 {
        return Vec::new();
    }
    let named: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
    if named.is_empty() {
        return vec![format!("row {number} names no test and does not say why")];
    }
    let missing = named.iter().filter(|name| !runs(root, name));
    missing.map(|name| format!("row {number}: there is no test {name}")).collect()
}

/// Is this the name of a test, `file::function`? Of a directory (`tests/chaos::NAME`) it is an entry of a table there, and a
/// golden script is a test by itself. A story that a test tells beside others is named like a test.
fn runs(root: &Path, name: &str) -> bool {
    if name.ends_with(".script") {
        return root.join(name).is_file();
    }
    let Some((file, function)) = name.split_once("::") else { return false };
    let path = root.join(file);
    match path.is_dir() {
        true => in_table(&path, function),
        false => tests_of(&path).contains(function) || is_told(root, file, function),
    }
}

/// Is the function of this file called by its test program?
fn is_told(root: &Path, file: &str, function: &str) -> bool {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let text = read(&root.join(file));
    let top = file.split('/').take(2).collect::<Vec<_>>().join("/");
    let program = [format!("{top}/main.rs"), format!("{top}.rs")].map(|path| read(&root.join(path))).concat();
    let call = |text: &str| text.contains(&format!("    {function}(")) || text.contains(&format!("::{function}"));
    file.starts_with("tests/") && text.contains(&format!("fn {function}(")) && (call(&text) || call(&program))
}

fn tests_of(file: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut tests = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        let function = line.trim_start_matches("async ").strip_prefix("fn ");
        if let Some((name, _)) = function.and_then(|rest| rest.split_once('(')) {
            if is_test {
                tests.insert(name.to_owned());
            }
            is_test = false;
        }
        // `proptest!` makes tests of functions with arguments; their attribute is the same.
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    }
    tests
}

/// Is this a quoted entry in a source of the directory?
fn in_table(directory: &Path, name: &str) -> bool {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let quoted = format!("\"{name}\"");
    entries.into_iter().any(|path| match path.is_dir() {
        true => in_table(&path, name),
        false => fs::read_to_string(&path).is_ok_and(|text| text.contains(&quoted)),
    })
}

#[test]
fn a_test_that_is_not_there_is_seen() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(runs(root, "tests/faults.rs::a_test_that_is_not_there_is_seen"));
    assert!(!runs(root, "src/lib.rs::main"), "a function that is no test");
    assert!(!runs(root, "tests/faults.rs::nothing"));
    assert_eq!(faulty(root, 1, "`tests/faults.rs::nothing`").len(), 1);
    assert_eq!(faulty(root, 1, "").len(), 1);
}
