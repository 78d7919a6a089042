//! Changes of names that nobody else touches: carried out a second time, mkdir would say EEXIST and unlink ENOENT. Any
//! error but "not in time" is wrong, and the harness looks for those by itself.

use crate::client::Player;
use crate::history::{Answer, Call, Outcome};
use std::fs::{self, File};
use std::io;
use std::path::Path;

type Change = (&'static str, fn(&Path) -> io::Result<()>);

const CHANGES: [Change; 7] = [
    ("mkdir", |own| fs::create_dir(own)),
    ("create", |own| File::create_new(own.join("a")).map(drop)),
    ("link", |own| fs::hard_link(own.join("a"), own.join("b"))),
    ("rename", |own| fs::rename(own.join("a"), own.join("c"))),
    ("unlink", |own| fs::remove_file(own.join("b"))),
    ("unlink the last", |own| fs::remove_file(own.join("c"))),
    ("rmdir", |own| fs::remove_dir(own)),
];

pub fn play(player: &mut Player) {
    while player.running() {
        let directory = format!("names/{}", player.unique());
        let path = player.own().join(&directory);
        for (what, change) in CHANGES {
            let call = Call::Do { what: format!("{what} in {directory}") };
            let outcome = player.call(call, || change(&path).map(|()| Answer::Done));
            // What is unknown is left alone.
            if !matches!(outcome, Outcome::Ok(_)) {
                break;
            }
            player.pause(10, 80);
        }
        player.pause(50, 200);
    }
}
