//! The judges, held to histories whose verdict is known: they need neither root nor a cluster, so `cargo test` does this
//! much.

use crate::finals::Finals;
use crate::history::{Answer, Call, History, Op, Outcome};
use crate::logcheck;
use crate::run::{answered, demanded};
use crate::workload::{self, Workload};
use serde_json::json;

/// A history, the tree at its end, and a word of the verdict; `None`: nothing is wrong.
struct Case {
    workload: &'static str,
    about: &'static str,
    ops: Vec<Op>,
    finals: Finals,
    verdict: Option<&'static str>,
}

/// The complaint about the first case that is judged wrong, or how many were judged right.
pub fn all() -> Result<usize, String> {
    let cases = cases();
    cases.iter().try_for_each(judge)?;
    let logs = logs();
    logs.iter().try_for_each(|(about, log, ops, verdict)| {
        let history = History { ops: ops.clone(), ..History::default() };
        let judged = logcheck::check(log, u64::MAX, &history);
        compare("log", about, &judged.wrong, *verdict)
    })?;
    peace_does_not_count()?;
    Ok(cases.len() + logs.len() + 1)
}

/// However much is answered before a fault and after it, it is too little if nothing is meanwhile.
fn peace_does_not_count() -> Result<(), String> {
    const S: u64 = 1_000_000_000;
    let (call, struck) = (Call::Read { file: "r".into() }, [10 * S..14 * S, 20 * S..24 * S]);
    let read = |at| op(at, at + 1, call.clone(), Answer::Value(0, None));
    let lost = [unknown(11 * S, call.clone())];
    let peace = (0..9).chain(15..19).chain(25..30).flat_map(|second| (0..100).map(move |part| second * S + part));
    let mut history = History { ops: peace.map(read).chain(lost).collect(), ..History::default() };
    let before = (answered(&history, &struck), demanded(&struck, false), demanded(&struck, true));
    history.ops.push(read(21 * S));
    match (before, answered(&history, &struck)) {
        ((0, 64, 8), 1) => Ok(()),
        other => Err(format!("calls under a fault are counted wrong: {other:?}")),
    }
}

fn judge(case: &Case) -> Result<(), String> {
    let workload: Option<&Workload> = workload::ALL.iter().find(|workload| workload.name == case.workload);
    let workload = workload.ok_or_else(|| format!("there is no workload {}", case.workload))?;
    let ops = case.ops.iter().cloned().map(|op| Op { workload: case.workload.into(), ..op }).collect();
    let history = History { ops, ..History::default() };
    compare(case.workload, case.about, &(workload.check)(&history, &case.finals), case.verdict)
}

fn compare(judge: &str, about: &str, wrong: &[String], verdict: Option<&str>) -> Result<(), String> {
    match verdict {
        None if wrong.is_empty() => Ok(()),
        Some(word) if wrong.iter().any(|what| what.contains(word)) => Ok(()),
        _ => Err(format!("{judge}, {about}: expected {verdict:?}, and it says {wrong:?}")),
    }
}

fn op(begin: u64, end: u64, call: Call, answer: Answer) -> Op {
    Op { client: 101, workload: String::new(), call, begin, end: Some(end), outcome: Outcome::Ok(answer) }
}

fn unknown(begin: u64, call: Call) -> Op {
    let outcome = Outcome::Unknown("ETIMEDOUT".into());
    Op { client: 102, workload: String::new(), call, begin, end: None, outcome }
}

fn with(files: &[(&str, &str)]) -> Finals {
    let mut finals = Finals::begun(1_000_000_000_000);
    files.iter().for_each(|(path, content)| finals.put(path, content));
    finals
}

fn case(
    workload: &'static str,
    about: &'static str,
    ops: Vec<Op>,
    finals: Finals,
    verdict: impl Into<Option<&'static str>>,
) -> Case {
    Case { workload, about, ops, finals, verdict: verdict.into() }
}

fn cases() -> Vec<Case> {
    [registers(), appends(), creates(), tokens(), locks(), expiries(), stores()].into_iter().flatten().collect()
}

fn registers() -> Vec<Case> {
    let write = |begin, end, value| op(begin, end, Call::Write { file: "r".into(), value }, Answer::Done);
    let read = |begin, end, value| op(begin, end, Call::Read { file: "r".into() }, Answer::Value(value, None));
    let lost = |begin, value| unknown(begin, Call::Write { file: "r".into(), value });
    let two = || with(&[("r", "0000000000000002")]);
    vec![
        case("register", "in order", vec![write(1, 2, 1), read(3, 4, 1), write(5, 6, 2)], two(), None),
        case("register", "a stale read", vec![write(1, 2, 1), write(3, 4, 2), read(5, 6, 1)], two(), "linearizable"),
        case(
            "register",
            "an unknown write that was made",
            vec![write(1, 2, 1), lost(3, 2), read(9, 10, 1)],
            two(),
            None,
        ),
        case("register", "a lost write", vec![write(1, 2, 2), write(3, 4, 1)], two(), "linearizable"),
    ]
}

fn appends() -> Vec<Case> {
    let append = |begin, end, record: &str| {
        op(begin, end, Call::Append { file: "a".into(), record: record.into() }, Answer::Done)
    };
    let read = |begin, seen: &str| {
        let answer = Answer::Bytes(seen.len() as u64, crc32c::crc32c(seen.as_bytes()));
        op(begin, begin + 1, Call::ReadAll { file: "a".into() }, answer)
    };
    let both = || vec![append(1, 2, "7"), append(3, 4, "8")];
    let seen = |what: &str| [both(), vec![read(5, what)]].concat();
    vec![
        case("append", "in order", seen("7 x\n8 \n"), with(&[("a", "7 x\n8 \n")]), None),
        case("append", "a lost record", both(), with(&[("a", "7 x\n")]), "lost"),
        case("append", "a record twice", both(), with(&[("a", "7 x\n8 \n7 x\n")]), "twice"),
        case("append", "against time", both(), with(&[("a", "8 \n7 x\n")]), "comes behind"),
        case("append", "interleaved", both(), with(&[("a", "7 x8 x\n\n")]), "nobody appended"),
        case("append", "a stale read", seen("7 x\n"), with(&[("a", "7 x\n8 \n")]), "missed"),
        case("append", "a read of something else", seen("8 \n"), with(&[("a", "7 x\n8 \n")]), "no beginning"),
    ]
}

fn creates() -> Vec<Case> {
    let call = || Call::Create { directory: "d".into(), name: "n".into() };
    let (made, refused) =
        (|begin| op(begin, begin + 1, call(), Answer::Done), |begin| op(begin, begin + 1, call(), Answer::Refused));
    let list = |begin, names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        op(begin, begin + 1, Call::List { directory: "d".into() }, Answer::Names(names))
    };
    let there = || with(&[("d/n", "")]);
    vec![
        case("create", "one winner", vec![made(1), refused(3), list(5, &["n"])], there(), None),
        case("create", "two winners", vec![made(1), made(3)], there(), "made twice"),
        case("create", "a winner nobody knows", vec![unknown(1, call()), refused(3)], there(), None),
        case("create", "refused too early", vec![refused(1), made(3)], there(), "before anybody"),
        case("create", "lost", vec![made(1)], with(&[]), "lost"),
        case("create", "missing in a listing", vec![made(1), list(3, &[])], there(), "misses"),
        case("create", "listed too early", vec![list(1, &["n"]), made(3)], there(), "before it was made"),
    ]
}

fn tokens() -> Vec<Case> {
    let step = |begin, from, to, answer| op(begin, begin + 1, Call::Move { token: 0, from, to }, answer);
    let look = |begin, place, answer| op(begin, begin + 1, Call::Look { token: 0, place }, answer);
    let (at, both) = (|place: &str| with(&[(place, "")]), with(&[("token/1/0", ""), ("token/2/0", "")]));
    let moved = || step(1, 0, 1, Answer::Done);
    vec![
        case("token", "moved once", vec![moved(), look(3, 0, Answer::Absent)], at("token/1/0"), None),
        case("token", "moved twice", vec![moved(), step(3, 0, 2, Answer::Done)], at("token/2/0"), "two places"),
        case("token", "seen where it was", vec![moved(), look(3, 0, Answer::Present)], at("token/1/0"), "two places"),
        case("token", "doubled", vec![moved()], both, "at the end"),
    ]
}

fn locks() -> Vec<Case> {
    let lock = |begin, generation, seen| {
        op(begin, begin + 1, Call::Lock { file: "lock/flock".into() }, Answer::Locked(generation, seen))
    };
    let prove =
        |begin, generation| op(begin, begin + 1, Call::Guarded { file: "lock/flock".into(), generation }, Answer::Done);
    vec![
        case("lock", "in turn", vec![lock(1, 1, 0), prove(5, 1), lock(9, 2, 1), prove(11, 2)], with(&[]), None),
        case(
            "lock",
            "together",
            vec![lock(1, 1, 0), lock(3, 2, 0), prove(5, 1), prove(7, 2)],
            with(&[]),
            "two at a time",
        ),
        case("lock", "an end that nobody proved", vec![lock(1, 1, 0), lock(3, 2, 0), prove(7, 2)], with(&[]), None),
        case("lock", "falling generations", vec![lock(1, 2, 0), lock(5, 1, 0)], with(&[]), "came later"),
        case("lock", "one generation twice", vec![lock(1, 1, 0), lock(5, 1, 0)], with(&[]), "granted to"),
        case(
            "lock",
            "an earlier holder's write is missed",
            vec![lock(1, 1, 0), prove(3, 1), lock(5, 2, 0)],
            with(&[]),
            "found",
        ),
    ]
}

fn expiries() -> Vec<Case> {
    const S: u64 = 1_000_000_000;
    let expire = |begin| op(begin, begin + 1, Call::Expire { file: "e".into(), ttl_s: 2 }, Answer::Done);
    let until = |begin, due| op(begin, begin + 1, Call::ExpireAt { file: "e".into(), unix_s: 0, due }, Answer::Done);
    let look = |begin, answer| op(begin, begin + 1, Call::IsThere { file: "e".into() }, answer);
    let (there, gone) = (|begin| look(begin, Answer::Present), |begin| look(begin, Answer::Absent));
    vec![
        case("expiry", "in time", vec![expire(S), there(2 * S), gone(4 * S)], with(&[]), None),
        case("expiry", "early", vec![expire(S), gone(2 * S)], with(&[]), "too early"),
        case(
            "expiry",
            "early after a renewal",
            vec![expire(S), expire(2 * S), gone(3 * S + S / 2)],
            with(&[]),
            "too early",
        ),
        case("expiry", "in time, by the clock", vec![until(S, 3 * S), gone(4 * S)], with(&[]), None),
        case("expiry", "early, by the clock", vec![until(S, 3 * S), gone(2 * S)], with(&[]), "too early"),
        case("expiry", "never, by the clock", vec![until(S, 3 * S)], with(&[("e", "")]), "still there"),
        case("expiry", "undone", vec![expire(S), gone(4 * S), there(5 * S)], with(&[]), "was seen"),
        case("expiry", "never", vec![expire(S), there(4 * S)], with(&[("e", "")]), "still there"),
    ]
}

fn stores() -> Vec<Case> {
    let store = |begin| op(begin, begin + 1, Call::Store { file: "s".into(), bytes: 3, seed: 0 }, Answer::Done);
    let right = String::from_utf8_lossy(&workload::pattern(3, 0)).into_owned();
    let remove = || unknown(9, Call::Remove { file: "s".into() });
    vec![
        case("large", "kept", vec![store(1)], with(&[("s", &right)]), None),
        case("large", "spoilt", vec![store(1)], with(&[("s", "abc")]), "something else"),
        case("large", "perhaps removed", vec![store(1), remove()], with(&[]), None),
    ]
}

type LogCase = (&'static str, logcheck::Printed, Vec<Op>, Option<&'static str>);

/// Entries from 1 on: a session is opened, and then each of these, with its sequence, is written to inode 9.
fn log(writes: &[(u64, u64)]) -> logcheck::Printed {
    let open = json!({"kind": "command", "cluster_ns": 1, "session": 0, "command": {"OpenSession": {"label": "x"}}});
    let mut log = logcheck::Printed::from([(1, open.to_string())]);
    for ((sequence, value), index) in writes.iter().zip(2..) {
        let body: String = workload::spelled(*value).bytes().map(|byte| format!("{byte:02x}")).collect();
        let entry = json!({
            "kind": "command", "cluster_ns": 1, "session": 1, "sequence": sequence, "first_outstanding": 1,
            "command": {"Write": {"ino": 9, "offset": 0, "length": 16}}, "body": body,
        });
        log.insert(index, entry.to_string());
    }
    log
}

/// The same with one more entry: this record is appended to inode 10.
fn with_record(mut log: logcheck::Printed, sequence: u64, record: &str) -> logcheck::Printed {
    let body: String = format!("{record} xx\n").bytes().map(|byte| format!("{byte:02x}")).collect();
    let entry = json!({
        "kind": "command", "cluster_ns": 1, "session": 1, "sequence": sequence, "first_outstanding": 1,
        "command": {"Append": {"ino": 10, "length": 1}}, "body": body,
    });
    log.insert(log.len() as u64 + 1, entry.to_string());
    log
}

/// As if a snapshot had taken the first two entries.
fn cut(log: logcheck::Printed) -> logcheck::Printed {
    log.into_iter().filter(|(index, _)| *index > 2).collect()
}

fn logs() -> Vec<LogCase> {
    let (a, b, c, d) = (200 << 32, 201 << 32, 202 << 32, 203 << 32);
    let write = |begin, value| op(begin, begin + 1, Call::Write { file: "r".into(), value }, Answer::Done);
    let read =
        |begin, value, version| op(begin, begin + 1, Call::Read { file: "r".into() }, Answer::Value(value, version));
    let append = |begin, record: &str| {
        op(begin, begin + 1, Call::Append { file: "a".into(), record: record.into() }, Answer::Done)
    };
    let failed = Op { outcome: Outcome::Failed("EROFS".into()), ..write(1, a) };
    vec![
        ("in order", log(&[(1, a), (2, b)]), vec![write(1, a), write(3, b), read(5, b, Some(3))], None),
        ("against time", log(&[(1, b), (2, a)]), vec![write(1, a), write(3, b)], Some("stands behind it")),
        ("sent twice", log(&[(1, a), (1, a)]), vec![write(1, a)], None),
        ("carried out twice", log(&[(1, a), (2, a)]), vec![write(1, a)], Some("and again")),
        ("lost", log(&[(1, a)]), vec![write(1, a), write(3, b)], Some("not in the log")),
        ("refused, and carried out", log(&[(1, a)]), vec![failed], Some("was refused")),
        ("a stale read", log(&[(1, a), (2, b)]), vec![write(1, a), write(3, b), read(5, a, None)], Some("overwritten")),
        (
            "its beginning given away, and a call lost",
            cut(log(&[(1, a), (2, b)])),
            vec![write(1, a), read(3, b, Some(3)), write(5, c)],
            Some("not in the log"),
        ),
        (
            "its beginning given away, and all in order",
            cut(log(&[(1, a), (2, b), (3, c)])),
            vec![write(1, a), read(3, b, Some(3)), write(5, c), read(7, c, Some(4)), read(9, c, None)],
            None,
        ),
        (
            "its beginning given away, and a stale read",
            cut(log(&[(1, a), (2, b), (3, c), (4, d)])),
            vec![read(3, b, Some(3)), write(5, c), write(7, d), read(9, c, None)],
            Some("overwritten"),
        ),
        (
            "its beginning given away, and what stood there comes again",
            cut(log(&[(1, a), (2, b), (1, a), (3, c)])),
            vec![write(1, a), read(3, b, Some(3)), read(5, b, Some(3)), write(7, c), read(9, c, Some(5))],
            None,
        ),
        (
            "its beginning given away, and a record of which no later write tells the age",
            cut(with_record(log(&[(1, a), (2, b)]), 3, "77")),
            vec![read(3, b, Some(3)), append(5, "77")],
            None,
        ),
        (
            "its beginning given away, and a record lost",
            cut(with_record(log(&[(1, a), (2, b)]), 3, "77")),
            vec![read(3, b, Some(3)), append(5, "77"), append(7, "78")],
            Some("not in the log"),
        ),
        ("another version", log(&[(1, a)]), vec![write(1, a), read(5, a, Some(7))], Some("written at 2")),
    ]
}
