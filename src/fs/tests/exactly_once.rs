use super::*;
use crate::limits::SESSION_OUTSTANDING_MAX;

fn append(play: &Play, sequence: u64, first_outstanding: u64, ino: Ino) -> Request {
    request(play.session, sequence, first_outstanding, USER, Command::Append { ino, length: 10 })
}

#[test]
fn a_request_that_comes_again_is_answered_and_not_executed() {
    let mut play = Play::new();
    let file = play.file("f");
    let once = append(&play, 10, 1, file);
    let first = play.put(&once, 10);
    play.write(file, 0, 1);
    let request = append(&play, 10, 1, file);
    assert_eq!(play.put(&request, 10), first, "the same reply, although the file has changed since");
    assert_eq!(play.stat(file).size, 10);
}

#[test]
fn a_refusal_is_kept_like_any_reply() {
    let mut play = Play::new();
    let unlink = Command::Unlink { parent: Ino::ROOT, name: name("f"), expected: None };
    let unlink = request(play.session, 10, 1, USER, unlink);
    assert_eq!(play.put(&unlink, 0), Err(Refusal::NoSuchName));
    let make = Command::Make { parent: Ino::ROOT, name: name("f"), node: NewNode::File, mode: 0, umask: 0 };
    play.put(&request(play.session, 11, 1, USER, make), 0).unwrap();
    assert_eq!(play.put(&unlink, 0), Err(Refusal::NoSuchName));
    assert!(play.at("f").is_ok());
}

/// Only a bug executes a request twice; then what it did must show, not the count of its replies.
#[test]
fn a_reply_that_replaces_another_is_not_counted_twice() {
    let mut play = Play::new();
    for outcome in [Ok(Reply::Done), Err(Refusal::NoSuchName)] {
        play.state.keep_reply(play.session, Sequence(10), &outcome);
        play.state.check().unwrap();
    }
}

#[test]
fn what_was_given_up_is_never_executed() {
    let mut play = Play::new();
    let file = play.file("f");
    let (late, later) = (append(&play, 10, 1, file), append(&play, 12, 12, file));
    assert!(play.put(&later, 10).is_ok());
    assert_eq!(play.put(&late, 10), Err(Refusal::GivenUp));
    assert_eq!(play.put(&append(&play.clone(), 13, 14, file), 10), Err(Refusal::GivenUp), "by itself");
    assert_eq!(play.stat(file).size, 10);
}

#[test]
fn an_unknown_session_executes_nothing() {
    let mut play = Play::new();
    let file = play.file("f");
    let before = tree(&play.state);
    for session in [SessionId(0), SessionId(99)] {
        let request = request(session, 1, 1, USER, Command::Append { ino: file, length: 10 });
        assert!(play.put(&request, 10).is_err());
    }
    let expire = Command::EndSession { session: play.session, last_seen: ClusterTime(0) };
    assert_eq!(play.run(expire), Err(Refusal::Invalid), "only leaders end others' sessions");
    assert_eq!(tree(&play.state), before);
}

#[test]
fn a_session_keeps_a_bounded_number_of_replies() {
    let mut play = Play::new();
    let tick = |play: &mut Play, sequence, first| {
        let stamp = play.stamp();
        let command = Command::KeepAlive { closed: vec![] };
        play.state.apply(stamp, &request(play.session, sequence, first, USER, command), 0)
    };
    for sequence in 1..=SESSION_OUTSTANDING_MAX as u64 {
        assert!(tick(&mut play, sequence, 1).is_ok());
    }
    assert_eq!(tick(&mut play, 9999, 1), Err(Refusal::TooManyOutstanding));
    assert!(tick(&mut play, 1, 1).is_ok(), "what is kept is still answered");
    assert!(tick(&mut play, 9999, 2).is_ok(), "and one that is acknowledged makes room");
    play.state.check().unwrap();
}
