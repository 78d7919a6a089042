//! The extents against a model that a child could check: a vector with, for each byte, the entry and place it came from.

use super::*;
use proptest::prelude::*;

type Model = Vec<Option<(u64, u32)>>;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u32),
    Append(u32),
    Resize(u64),
    Allocate(AllocateMode, u64, u64),
    Copy { from: usize, from_offset: u64, to_offset: u64, length: u64 },
    Replace(u32),
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let mode = prop_oneof![
        Just(AllocateMode::Extend),
        Just(AllocateMode::KeepSize),
        Just(AllocateMode::PunchHole),
        any::<bool>().prop_map(|keep_size| AllocateMode::ZeroRange { keep_size }),
        Just(AllocateMode::Collapse),
        Just(AllocateMode::Insert),
    ];
    let copy = (0..2_usize, 0..60_u64, 0..60_u64, 0..40_u64)
        .prop_map(|(from, from_offset, to_offset, length)| Step::Copy { from, from_offset, to_offset, length });
    let step = prop_oneof![
        4 => (0..60_u64, 0..20_u32).prop_map(|(offset, length)| Step::Write(offset, length)),
        1 => (0..20_u32).prop_map(Step::Append),
        1 => (0..80_u64).prop_map(Step::Resize),
        3 => (mode, 0..60_u64, 1..20_u64).prop_map(|(mode, offset, length)| Step::Allocate(mode, offset, length)),
        3 => copy,
        1 => (0..20_u32).prop_map(Step::Replace),
    ];
    proptest::collection::vec((0..2_usize, step), 1..60)
}

fn command(ino: [Ino; 2], on: usize, step: &Step, version: LogIndex) -> Command {
    let this = ino[on];
    match *step {
        Step::Write(offset, length) => Command::Write { ino: this, offset, length },
        Step::Append(length) => Command::Append { ino: this, length },
        Step::Resize(size) => {
            Command::SetAttributes { ino: this, changes: AttributeChanges { size: Some(size), ..Default::default() } }
        }
        Step::Allocate(mode, offset, length) => Command::Allocate { ino: this, mode, offset, length },
        Step::Copy { from, from_offset, to_offset, length } => {
            Command::CopyRange { from: ino[from], from_offset, to: this, to_offset, length }
        }
        Step::Replace(length) => Command::Replace { ino: this, expected: version, expiry: ExpiryChange::Keep, length },
    }
}

fn put(model: &mut Model, offset: u64, bytes: &[Option<(u64, u32)>]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if bytes.is_empty() {
        return;
    }
    model.resize(model.len().max(end), None);
    model[start..end].copy_from_slice(bytes);
}

/// What the step means for plain bytes; only called if the state machine accepted it.
fn play_on(models: &mut [Model; 2], on: usize, step: &Step, index: u64) {
    let fresh = |length: u32| (0..length).map(|at| Some((index, at))).collect::<Vec<_>>();
    let size = models[on].len();
    match *step {
        Step::Write(offset, length) => put(&mut models[on], offset, &fresh(length)),
        Step::Append(length) => put(&mut models[on], size as u64, &fresh(length)),
        Step::Resize(size) => models[on].resize(size as usize, None),
        Step::Replace(length) => models[on] = fresh(length),
        Step::Copy { from, from_offset, to_offset, length } => {
            let from = &models[from];
            let end = (from_offset + length).min(from.len() as u64);
            let bytes = from.get(from_offset as usize..end as usize).unwrap_or_default().to_vec();
            put(&mut models[on], to_offset, &bytes);
        }
        Step::Allocate(mode, offset, length) => {
            let (start, end) = (offset as usize, (offset + length) as usize);
            let model = &mut models[on];
            match mode {
                AllocateMode::Extend => model.resize(size.max(end), None),
                AllocateMode::KeepSize => {}
                AllocateMode::PunchHole | AllocateMode::ZeroRange { keep_size: true } => {
                    model.iter_mut().take(end).skip(start).for_each(|byte| *byte = None);
                }
                AllocateMode::ZeroRange { keep_size: false } => put(model, offset, &vec![None; length as usize]),
                AllocateMode::Collapse => drop(model.drain(start..end)),
                AllocateMode::Insert => drop(model.splice(start..start, vec![None; length as usize])),
            }
        }
    }
}

/// The file as the state machine has it, byte by byte.
fn read(state: &State, ino: Ino, offset: u64, length: u64) -> Model {
    let Ok(Answer::Content(content)) = state.answer(&Query::Content { ino, offset, length }) else { panic!() };
    let bytes = content.pieces.iter().flat_map(|piece| match *piece {
        Piece::Hole { length } => vec![None; length as usize],
        Piece::Body { index, offset, length } => (offset..offset + length).map(|at| Some((index.0, at))).collect(),
    });
    bytes.collect()
}

fn seek(state: &State, ino: Ino, offset: u64, hole: bool) -> Option<u64> {
    match state.answer(&Query::Seek { ino, offset, hole }) {
        Ok(Answer::Offset(found)) => found,
        other => panic!("{other:?}"),
    }
}

fn agrees(play: &Play, ino: Ino, model: &Model) {
    let attributes = play.stat(ino);
    assert_eq!(attributes.size, model.len() as u64);
    assert_eq!(attributes.allocated, model.iter().flatten().count() as u64);
    assert_eq!(&read(&play.state, ino, 0, u64::MAX), model);
    let middle = model.get(7..model.len().min(19)).unwrap_or_default();
    assert_eq!(read(&play.state, ino, 7, 12), middle);
    for from in 0..=model.len() {
        let data = (from..model.len()).find(|at| model[*at].is_some());
        let hole = (from..model.len()).find(|at| model[*at].is_none()).or((from < model.len()).then_some(model.len()));
        assert_eq!(seek(&play.state, ino, from as u64, false), data.map(|at| at as u64));
        assert_eq!(seek(&play.state, ino, from as u64, true), hole.map(|at| at as u64));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn extents_are_bytes(steps in steps()) {
        let mut play = Play::new();
        let files = [play.file("a"), play.file("b")];
        let mut models = [Model::new(), Model::new()];
        for (on, step) in steps {
            let version = play.stat(files[on]).version;
            if play.run(command(files, on, &step, version)).is_ok() {
                let index = play.index;
                play_on(&mut models, on, &step, index);
            }
            agrees(&play, files[0], &models[0]);
            agrees(&play, files[1], &models[1]);
            let bodies: std::collections::BTreeSet<_> = models.iter().flatten().flatten().map(|byte| byte.0).collect();
            prop_assert!(play.state.live_bodies(LogIndex(0)).map(|index| index.0).eq(bodies));
        }
    }
}

#[test]
fn what_was_cut_off_reads_as_zeros_when_the_file_grows_again() {
    let mut play = Play::new();
    let file = play.file("f");
    play.write(file, 0, 100);
    for size in [40, 100] {
        play.set(file, AttributeChanges { size: Some(size), ..Default::default() });
    }
    assert_eq!(play.stat(file).allocated, 40);
    assert_eq!(read(&play.state, file, 39, 3).iter().filter(|byte| byte.is_none()).count(), 2);
}

#[test]
fn sizes_have_an_end() {
    let mut play = Play::new();
    let file = play.file("f");
    let before = tree(&play.state);
    for offset in [crate::limits::FILE_BYTES_MAX, u64::MAX - 1, u64::MAX] {
        assert_eq!(play.run(Command::Write { ino: file, offset, length: 5 }), Err(Refusal::FileTooLarge));
        let (mode, length) = (AllocateMode::Extend, u64::MAX);
        assert_eq!(play.run(Command::Allocate { ino: file, mode, offset, length }), Err(Refusal::FileTooLarge));
    }
    assert_eq!(tree(&play.state), before);
}

/// What a copy shows is the source's own entries, and nothing new in the log.
/// Holds [A5].
#[test]
fn a_copy_shares_and_is_cut_short_behind_so_many_extents() {
    let mut play = Play::new();
    let (source, target) = (play.file("source"), play.file("target"));
    // with a hole behind each byte, so that no two extents are one
    for at in 0..crate::limits::COPY_EXTENTS_MAX as u64 + 10 {
        play.run_unchecked(Command::Write { ino: source, offset: 2 * at, length: 1 }).unwrap();
    }
    let size = play.stat(source).size;
    let copy = |offset, length| Command::CopyRange {
        from: source,
        from_offset: offset,
        to: target,
        to_offset: offset,
        length,
    };
    assert_eq!(copy(0, size).body_length(), 0, "a copy carries no bytes");
    assert_eq!(play.run(copy(0, size)), Ok(Reply::Copied(2 * 4096)), "fewer than asked for, in one step");
    let rest = size - 2 * 4096;
    assert_eq!(play.run(copy(2 * 4096, rest)), Ok(Reply::Copied(rest)));
    assert_eq!(read(&play.state, target, 0, u64::MAX), read(&play.state, source, 0, u64::MAX));
    assert_eq!(play.state.live_bodies(LogIndex(0)).count() as u64, size.div_ceil(2), "those of the writes");
}

#[test]
fn copying_onto_itself_is_refused_and_doubling_is_bounded() {
    let mut play = Play::new();
    let file = play.file("f");
    play.write(file, 0, 1);
    play.write(file, 2, 1);
    let copy =
        |from_offset, to_offset, length| Command::CopyRange { from: file, from_offset, to: file, to_offset, length };
    assert_eq!(play.run(copy(0, 1, 2)), Err(Refusal::Invalid));
    assert_eq!(play.run(copy(0, 1, 0)), Ok(Reply::Copied(0)));
    assert_eq!(play.run(copy(9, 0, 5)), Ok(Reply::Copied(0)));
    let mut copied = 0;
    for _ in 0..14 {
        let size = play.stat(file).size;
        match play.run(copy(0, size, size)) {
            Ok(Reply::Copied(bytes)) => copied = bytes,
            other => panic!("{other:?}"),
        }
    }
    assert!(copied < play.stat(file).size / 2, "cut short: {copied}");
    assert_eq!(play.state.extents.len() % crate::limits::COPY_EXTENTS_MAX, 0);
}
