//! The nodes of the cluster: whose vote can still be trusted.

use super::*;

fn start(instance: u128, incarnation: u64, run: u64, log_end: u64) -> NodeStart {
    NodeStart { instance, incarnation, run, log_end: LogIndex(log_end) }
}

impl Play {
    fn of_nodes(members: &[u64]) -> Play {
        let mut play = Play::new();
        play.members(members);
        play
    }

    fn members(&mut self, members: &[u64]) {
        let index = self.stamp().index;
        self.state.set_members(index, members);
        self.state.check().unwrap();
    }

    fn begins(&mut self, node: u64, start: NodeStart) -> Outcome {
        self.lead(Command::Node(NodeCommand::Start { node, start }))
    }

    fn holds(&mut self, node: u64, run: u64, upto: u64) {
        let noted = vec![NodeHolds { node, run, upto: LogIndex(upto) }];
        self.lead(Command::Node(NodeCommand::Holds(noted))).unwrap();
    }

    fn allocate(&mut self) -> u64 {
        match self.lead(Command::Node(NodeCommand::Allocate)) {
            Ok(Reply::Node(node)) => node,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_wiped_directory_and_an_old_copy_are_unfit_and_an_ordinary_restart_is_not() {
    let mut play = Play::of_nodes(&[1, 2, 3]);
    play.begins(2, start(7, 5, 50, 0)).unwrap();
    assert_eq!(play.state.fit(2, &start(7, 5, 50, 0)), Ok(()), "it connects again");
    assert_eq!(play.state.fit(2, &start(7, 6, 60, 0)), Ok(()), "it starts again");
    assert_eq!(play.state.fit(2, &start(8, 1, 10, 0)), Err(Unfit::Wiped { node: 2 }));
    // A copy made before the known start comes to the same number with another run, or to a lower one.
    assert_eq!(play.state.fit(2, &start(7, 5, 51, 9)), Err(Unfit::OldStart { node: 2, found: 5, known: 5 }));
    assert_eq!(play.state.fit(2, &start(7, 4, 40, 9)), Err(Unfit::OldStart { node: 2, found: 4, known: 5 }));
    // Nor can such a start be made the known one.
    for unfit in [start(8, 9, 90, 9), start(7, 5, 51, 9), start(7, 4, 40, 9)] {
        assert_eq!(play.begins(2, unfit), Err(Refusal::NotPermitted));
    }
    assert_eq!(play.state.node_start(2), Some(&start(7, 5, 50, 0)));
}

#[test]
fn a_copy_that_was_made_during_the_last_run_is_betrayed_by_the_end_of_its_log() {
    let mut play = Play::of_nodes(&[1, 2]);
    play.begins(2, start(7, 1, 10, 0)).unwrap();
    (0..20).for_each(|_| drop(play.lead(Command::Tick)));
    play.holds(2, 10, 15);
    assert_eq!(play.state.fit(2, &start(7, 2, 20, 14)), Err(Unfit::OldLog { node: 2, found: 14, known: 15 }));
    assert_eq!(play.state.fit(2, &start(7, 2, 20, 15)), Ok(()));
    assert_eq!(play.state.fit(2, &start(7, 1, 10, 0)), Ok(()), "the run itself has grown since it started");
    // What is said too late, of another run, or of what is not committed, is not noted.
    play.holds(2, 10, 12);
    play.holds(2, 11, 20);
    play.holds(2, 10, 1000);
    assert_eq!(play.state.node_holds(2), LogIndex(15));
    play.begins(2, start(7, 2, 20, 16)).unwrap();
    play.holds(2, 10, 18);
    assert_eq!(play.state.node_holds(2), LogIndex(15), "the earlier run has ended");
}

#[test]
fn a_number_is_never_given_twice_and_a_removed_node_stays_removed() {
    let mut play = Play::of_nodes(&[1, 2, 5]);
    assert_eq!(play.state.fit(6, &start(1, 1, 1, 0)), Ok(()), "not heard of yet");
    let six = play.allocate();
    assert_eq!(six, 6);
    assert_eq!(play.state.fit(six, &start(1, 1, 1, 0)), Ok(()), "given out, and not yet a member");
    assert_eq!(play.begins(six, start(1, 1, 1, 0)), Err(Refusal::NotPermitted));
    play.members(&[1, 2, 5, six]);
    play.begins(six, start(1, 1, 1, 0)).unwrap();
    play.members(&[1, 2, six]);
    assert_eq!(play.state.fit(5, &start(1, 9, 9, 900)), Err(Unfit::Removed { node: 5 }));
    assert_eq!(play.state.node_start(six), Some(&start(1, 1, 1, 0)), "a change of others changes nothing for it");
    play.members(&[1, 2]);
    assert_eq!(play.state.fit(six, &start(1, 2, 2, 0)), Err(Unfit::Removed { node: six }));
    assert_eq!(play.allocate(), 7);
}
