//! The rooms keep to the table of `src/lib.rs`: who may import whom, and which foreign crate lives in one room only.
//!
//! The table is read from the source, so it cannot drift from what is tested. Paths are taken from the text: `crate::X`
//! anywhere outside comments and doc comments, and the first names of `use crate::{…}`. Tests may use any room: a file in a
//! folder `tests`, and what follows `#[cfg(test)]` at the end of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crates that only one place may name.
const LODGERS: &[(&str, &str)] =
    &[("bincode", "codec"), ("openraft", "raft"), ("fuser", "fuse"), ("rustls", "net"), ("rcgen", "net")];
/// Open to all rooms.
const COMMON: [&str; 2] = ["limits", "seeded"];

type Table = BTreeMap<String, BTreeSet<String>>;

#[test]
fn every_room_imports_only_what_the_table_allows() {
    let table = table(&read(&source().join("lib.rs")));
    let mut broken = Vec::new();
    for (file, room) in files_of_rooms().into_iter().filter(|(file, _)| !is_of_tests(file)) {
        let allowed = table.get(&room).unwrap_or_else(|| panic!("src/lib.rs has no row for the room {room:?}"));
        for (line, imported) in imports(product(&read(&file))) {
            if imported != room && !COMMON.contains(&imported.as_str()) && !allowed.contains(&imported) {
                broken.push(format!("{}:{line}: `{room}` may not import `{imported}`", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn foreign_crates_stay_in_their_room() {
    let mut broken = Vec::new();
    for (file, room) in files_of_rooms() {
        let text = read(&file);
        for (line, code) in code_lines(&text) {
            for (lodger, home) in LODGERS {
                if room != *home && names_crate(code, lodger) {
                    broken.push(format!("{}:{line}: {lodger} belongs in `{home}` only", file.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_table_names_the_modules_that_exist() {
    let declared: BTreeSet<String> = code_lines(&read(&source().join("lib.rs")))
        .filter_map(|(_, line)| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned()))
        .filter(|module| !COMMON.contains(&module.as_str()))
        .collect();
    let listed: BTreeSet<String> = table(&read(&source().join("lib.rs"))).into_keys().collect();
    assert_eq!(declared, listed);
}

/// The checks above find what they look for: each line is a breach that must be seen, or a line that is none.
#[test]
fn breaches_are_seen() {
    let text = "use crate::volume::Volume;\nuse crate::{fs::Ino, log::{Entry, Body}, net};\nlet x = crate::node::start();\n\
        // crate::cli is a comment\npub(crate) fn f() {}\nuse crate::{\n    raft::Replica,\n    codec,\n};\nlet s = \"https://x\"; crate::fuse::f();\n";
    let found: Vec<(usize, String)> = imports(text);
    let expected =
        [(1, "volume"), (2, "fs"), (2, "log"), (2, "net"), (3, "node"), (6, "raft"), (6, "codec"), (10, "fuse")];
    assert_eq!(found, expected.map(|(line, room)| (line, room.to_owned())));

    assert!(names_crate("use openraft::Raft;", "openraft"));
    assert!(names_crate("    ::fuser::Session", "fuser"));
    assert!(!names_crate("use crate::raft::openraft_types;", "openraft"));
    assert!(!names_crate("let defuser::x", "fuser"));
    assert!(code_lines("/// openraft::Raft\n//! bincode::x\ncode // fuser::y\n").all(|(_, line)| !line.contains("::")));

    let table = table(
        "//! | [`fs`] | a | nothing of ours |\n//! | [`node`] | a | all but `cli` |\n//! | [`cli`] | b | all |\n//! | [`net`] | c | `fs` |",
    );
    assert!(table["fs"].is_empty());
    assert_eq!(table["net"], BTreeSet::from(["fs".to_owned()]));
    assert!(table["node"].contains("net") && !table["node"].contains("cli"));
    assert!(table["cli"].contains("node"));
}

fn is_of_tests(file: &Path) -> bool {
    file.components().any(|part| part.as_os_str() == "tests") || file.file_name().is_some_and(|name| name == "tests.rs")
}

/// A file without the tests at its end.
fn product(text: &str) -> &str {
    text.split_once("\n#[cfg(test)]\nmod tests {").map_or(text, |(product, _)| product)
}

/// Rows `| [`room`] | … | may import |` of the crate's documentation.
fn table(text: &str) -> Table {
    let rows: Vec<(String, String)> = text.lines().filter_map(row).collect();
    let all: BTreeSet<String> = rows.iter().map(|(room, _)| room.clone()).collect();
    assert!(!all.is_empty(), "src/lib.rs holds no table of rooms");
    rows.into_iter().map(|(room, rule)| (room, allowed(&rule, &all))).collect()
}

fn row(line: &str) -> Option<(String, String)> {
    let cells: Vec<&str> = line.strip_prefix("//! | [`")?.trim_end().trim_end_matches('|').split(" | ").collect();
    let room = cells.first()?.strip_suffix("`]")?;
    Some((room.to_owned(), cells.last()?.trim().to_owned()))
}

fn allowed(rule: &str, all: &BTreeSet<String>) -> BTreeSet<String> {
    let named: BTreeSet<String> =
        rule.split('`').skip(1).step_by(2).flat_map(|words| words.split(' ')).map(str::to_owned).collect();
    assert!(named.is_subset(all), "the rule {rule:?} names a room that is not in the table");
    match rule {
        "nothing of ours" => BTreeSet::new(),
        "all" => all.clone(),
        _ if rule.starts_with("all but ") => all.difference(&named).cloned().collect(),
        _ => named,
    }
}

/// Line and first path segment of every path that starts with `crate::`, and of each arm of `crate::{…}`.
fn imports(text: &str) -> Vec<(usize, String)> {
    let code: String = code_lines(text).map(|(_, line)| format!("{line}\n")).collect();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        found.extend(heads(rest).into_iter().map(|room| (line, room)));
    }
    found.retain(|(_, name)| name.starts_with(|c: char| c.is_lowercase()));
    found
}

/// `x::y` → x; `{a::b, c::{d, e}, f}` → a, c, f.
fn heads(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else { return vec![identifier(path)] };
    let (mut depth, mut heads, mut at_start) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if c.is_whitespace() => {}
            _ if at_start => {
                heads.push(identifier(&group[at..]));
                at_start = false;
            }
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}::"))
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Numbered lines without comments. A `//` behind a quote character may be part of a string, so it is left alone.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, line)| {
        let code = match line.find("//") {
            Some(comment) if !line[..comment].contains('"') => &line[..comment],
            _ => line,
        };
        (at + 1, code)
    })
}

/// Every source file below a room, with the room's name: `src/x.rs` and `src/x/**` belong to x.
fn files_of_rooms() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    walk(&source(), &mut files);
    let rooms = files.into_iter().filter_map(|file| {
        let first = file.strip_prefix(source()).ok()?.components().next()?;
        let room = Path::new(first.as_os_str()).file_stem()?.to_str()?.to_owned();
        Some((file, room))
    });
    let rooms: Vec<_> =
        rooms.filter(|(_, room)| !["lib", "main"].iter().chain(&COMMON).any(|other| other == room)).collect();
    assert!(rooms.len() > 10, "found only {} source files", rooms.len());
    rooms
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a source directory") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}
