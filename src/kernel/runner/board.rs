//! Which run may send, which wait for it, and where a record belongs (19.03 `runner.py`, `attach_output_queue`).
//!
//! One run is active at a time. Another one waits until the active run's `finished` has arrived, and its code is sent
//! only then. A finished run gives way at once, also when nobody fetches its last output.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::run::Run;
use super::wire::{Mark, Record};

/// Finished runs whose end nobody has fetched are kept up to this number.
const UNCLAIMED: usize = 8;

/// The runs of one runner.
#[derive(Debug, Default)]
pub struct Board(Mutex<Runs>);

#[derive(Debug, Default)]
struct Runs {
    active: Option<Arc<Run>>,
    waiting: VecDeque<Arc<Run>>,
    finished: VecDeque<Arc<Run>>,
    /// What arrived before any run was known: the run began before this agent did.
    orphan: Option<Arc<Run>>,
    /// A run was entered: from now on output without a run is discarded.
    opened: bool,
}

/// A call's place at a run; dropping it takes the call away, and a run for which nothing was sent with it.
#[derive(Debug)]
pub struct Place<'a> {
    board: &'a Board,
    /// The run.
    pub run: Arc<Run>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.run.caller(false);
        self.board.tidy();
    }
}

impl Board {
    fn with<T>(&self, act: impl FnOnce(&mut Runs) -> T) -> T {
        act(&mut self.0.lock().expect("no panic while held"))
    }

    /// Takes part in the run of this id: makes it when it is new, or when `fresh` code is sent for an id whose run is
    /// over. The run may have to wait for its turn.
    pub fn enter(&self, id: &str, fresh: bool) -> Place<'_> {
        let run = self.with(|runs| {
            let run = runs.enter(id, fresh);
            run.caller(true);
            run
        });
        Place { board: self, run }
    }

    /// The run that output belongs to now; `None` when it is to be discarded.
    pub fn receiver(&self) -> Option<Arc<Run>> {
        self.with(|runs| {
            if runs.active.is_some() || runs.opened {
                return runs.active.clone();
            }
            let orphan = runs
                .orphan
                .get_or_insert_with(|| Arc::new(Run::new(String::new())));
            Some(Arc::clone(orphan))
        })
    }

    /// Ends the active run: its `finished` has arrived. The oldest waiting run is next.
    pub fn finished(&self, run: &Arc<Run>) {
        self.with(|runs| {
            if runs.active.as_ref().is_none_or(|it| !Arc::ptr_eq(it, run)) {
                return;
            }
            runs.active = None;
            runs.finished.push_back(Arc::clone(run));
            while runs.finished.len() > UNCLAIMED {
                runs.finished.pop_front();
            }
            runs.next();
        });
    }

    /// Forgets runs that are over, and those that were given up before anything was sent.
    fn tidy(&self) {
        self.with(|runs| {
            runs.finished.retain(|run| !run.is_over());
            runs.waiting.retain(|run| !run.is_idle());
            if !runs.waiting.is_empty() && runs.active.as_ref().is_some_and(|run| run.is_idle()) {
                runs.active = None;
                runs.next();
            }
        });
    }
}

impl Runs {
    fn enter(&mut self, id: &str, fresh: bool) -> Arc<Run> {
        let known = self.active.iter().chain(&self.waiting);
        if let Some(run) = known.chain(&self.finished).find(|run| run.id == id) {
            if !(fresh && run.is_finished()) {
                return Arc::clone(run);
            }
            self.finished.retain(|run| run.id != id);
        }
        if self.active.as_ref().is_some_and(|run| run.is_idle()) {
            self.active = None;
        }
        let orphan = self.orphan.take().filter(|_| !fresh);
        self.opened = true;
        let run = match orphan {
            Some(orphan) if self.active.is_none() => return self.adopt(id, &orphan),
            _ => Arc::new(Run::new(id.to_owned())),
        };
        self.waiting.push_back(Arc::clone(&run));
        self.next();
        run
    }

    /// Makes what arrived before any run was known the beginning of this run.
    fn adopt(&mut self, id: &str, orphan: &Run) -> Arc<Run> {
        let run = Arc::new(orphan.renamed(id));
        run.activate();
        if run.is_finished() {
            self.finished.push_back(Arc::clone(&run));
        } else {
            self.active = Some(Arc::clone(&run));
        }
        run
    }

    fn next(&mut self) {
        if self.active.is_some() {
            return;
        }
        self.active = self.waiting.pop_front();
        if let Some(run) = &self.active {
            run.activate();
        }
    }
}

/// Whether the record ends the run it belongs to.
#[must_use]
pub fn ends_run(record: &Record) -> bool {
    matches!(record, Record::Mark(Mark::Finished { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::runner::console::Console;

    fn finish(board: &Board) {
        let run = board.receiver().expect("a run is active");
        let mark = Record::Mark(Mark::Finished {
            exit_code: Some(0),
            with_files: true,
        });
        run.add(&mut Console::default(), mark).expect("has room");
        board.finished(&run);
    }

    #[test]
    fn a_second_run_waits_for_the_first_to_finish() {
        let board = Board::default();
        let first = board.enter("a", true);
        let second = board.enter("b", true);
        first.run.begin(None);
        assert_eq!(
            board.receiver().map(|run| run.id.clone()).as_deref(),
            Some("a")
        );
        finish(&board);
        assert_eq!(
            board.receiver().map(|run| run.id.clone()).as_deref(),
            Some("b")
        );
        drop(second);
    }

    #[test]
    fn a_waiting_run_that_was_given_up_does_not_get_the_turn() {
        let board = Board::default();
        let first = board.enter("a", true);
        first.run.begin(None);
        drop(board.enter("b", true));
        finish(&board);
        assert!(board.receiver().is_none());
    }

    #[test]
    fn a_run_given_up_before_it_sent_anything_gives_way() {
        let board = Board::default();
        drop(board.enter("a", false));
        let second = board.enter("b", true);
        assert!(Arc::ptr_eq(
            &second.run,
            &board.receiver().expect("b is active")
        ));
    }

    #[test]
    fn code_for_the_id_of_a_run_that_is_over_starts_a_new_run() {
        let board = Board::default();
        let first = board.enter("a", true);
        first.run.begin(None);
        finish(&board);
        let again = board.enter("a", true);
        assert!(!again.run.is_finished());
        assert!(!Arc::ptr_eq(&again.run, &first.run));
    }

    #[test]
    fn output_from_before_this_agent_goes_to_the_run_that_asks_first() {
        let board = Board::default();
        let early = board.receiver().expect("kept until somebody asks");
        let record = Record::Stdout("early".into());
        early
            .add(&mut Console::default(), record)
            .expect("has room");
        let place = board.enter("a", false);
        assert!(!place.run.is_idle());
        assert!(Arc::ptr_eq(&place.run, &board.receiver().expect("active")));
    }

    #[test]
    fn output_of_no_run_is_discarded() {
        let board = Board::default();
        let place = board.enter("a", true);
        place.run.begin(None);
        finish(&board);
        assert!(board.receiver().is_none());
    }
}
