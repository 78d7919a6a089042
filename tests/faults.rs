//! Does `FAULTS.md` name tests that exist? Each row names what holds it, as `file::function`, or says in words why nothing
//! does. That the tests hold what the row says is for its reader; that they are there, and not left out, is seen here. Those
//! of `tests/chaos` are the nemeses of its table: `scripts/check` runs some of them each day, and by and by all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Rows of the page.
const FAULTS: usize = 50;
/// What begins a cell that names no test.
const UNSHOWN: &str = "not shown:";
const CHAOS: &str = "tests/chaos";

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

/// The table of nemeses says of each which rows it is for, and the rows name it.
#[test]
fn every_nemesis_is_named_by_its_rows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("FAULTS.md")).expect("the page");
    let mut named: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for (number, cell) in page.lines().filter_map(row) {
        for name in cell.split('`').filter_map(|name| name.strip_prefix("tests/chaos::")) {
            named.entry(name.into()).or_default().insert(number);
        }
    }
    assert_eq!(nemeses(root), named, "left: the table of nemeses; right: FAULTS.md");
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

/// Is this the name of a test, `file::function`? Of `tests/chaos` it is a nemesis, and a golden script is a test by itself. A story that a test tells beside others is named like a test.
fn runs(root: &Path, name: &str) -> bool {
    if name.ends_with(".script") {
        return root.join(name).is_file();
    }
    let Some((file, function)) = name.split_once("::") else { return false };
    match file == CHAOS {
        true => nemeses(root).contains_key(function),
        false => tests_of(&read(&root.join(file))).contains(function) || is_told(root, file, function),
    }
}

/// Is the function of this file called by its test program?
fn is_told(root: &Path, file: &str, function: &str) -> bool {
    let text = read(&root.join(file));
    let top = file.split('/').take(2).collect::<Vec<_>>().join("/");
    let program = [format!("{top}/main.rs"), format!("{top}.rs")].map(|path| read(&root.join(path))).concat();
    let call = |text: &str| text.contains(&format!("    {function}(")) || text.contains(&format!("::{function}"));
    file.starts_with("tests/") && text.contains(&format!("fn {function}(")) && (call(&text) || call(&program))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn tests_of(text: &str) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let (mut is_test, mut is_ignored) = (false, false);
    for line in text.lines().map(str::trim) {
        let function = line.trim_start_matches("async ").strip_prefix("fn ");
        if let Some((name, _)) = function.and_then(|rest| rest.split_once('(')) {
            if is_test && !is_ignored {
                tests.insert(name.to_owned());
            }
            (is_test, is_ignored) = (false, false);
        }
        is_ignored |= line.starts_with("#[ignore");
        // `proptest!` makes tests of functions with arguments; their attribute is the same.
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    }
    tests
}

/// The nemeses of `tests/chaos`, each with the rows that it is for, as their table has them: `plain("name", "1, 2", …)`.
fn nemeses(root: &Path) -> BTreeMap<String, BTreeSet<usize>> {
    let text = read(&root.join(CHAOS).join("nemesis/mod.rs"));
    let table = text.split_once("pub const ALL").and_then(|(_, rest)| rest.split_once("];")).expect("the table").0;
    let entries = table.split("plain(").flat_map(|part| part.split("filtered(")).skip(1);
    let quoted = entries.map(|entry| entry.split('"').skip(1).step_by(2).take(2).collect::<Vec<_>>());
    let parsed = quoted.map(|words| {
        let &[name, rows] = words.as_slice() else { panic!("{words:?} is no entry of the table") };
        (name.into(), rows.split(", ").map(|row| row.parse().expect("the number of a row")).collect())
    });
    parsed.collect()
}

#[test]
fn a_test_that_is_not_there_is_seen() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(runs(root, "tests/faults.rs::a_test_that_is_not_there_is_seen"));
    assert!(!runs(root, "src/lib.rs::main"), "a function that is no test");
    assert!(!runs(root, "tests/faults.rs::nothing"));
    assert!(runs(root, "tests/chaos::kill-leader"));
    assert!(!runs(root, "tests/chaos::register"), "quoted there, and no nemesis");
    assert!(tests_of("#[test]\nfn one() {}\n#[test]\n#[ignore]\nfn two() {}\n").iter().eq(["one"]));
    assert_eq!(faulty(root, 1, "`tests/faults.rs::nothing`").len(), 1);
    assert_eq!(faulty(root, 1, "").len(), 1);
}
