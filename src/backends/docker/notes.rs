//! What the agent remembers of containers: what dockerd does not keep, and what it need not be asked for.
//!
//! Notes live no longer than this agent, which is enough: an agent that finds a container not running removes it, and
//! one that remembers nothing asks dockerd.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::runtime::ContainerId;

/// Every container that there is something to remember of.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<HashMap<ContainerId, Note>>);

/// What is remembered of one container.
#[derive(Debug, Default)]
struct Note {
    stage: Option<Stage>,
    out_of_memory: bool,
    made: Option<Made>,
}

/// How far a container is that does not run yet, or never will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// This agent has made it, so that no other knows of it, and has not started it.
    Made,
    /// It is being started.
    Starting,
    /// It was killed by this signal before it was started, so it never will be.
    Killed(i32),
}

/// A container of this agent's own making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Made {
    /// Its parent cgroup, where the agent has made one.
    pub(super) cgroup: Option<PathBuf>,
}

impl Notes {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<ContainerId, Note>) -> T) -> T {
        act(&mut self.0.lock().expect("no panic while held"))
    }

    fn change(&self, id: &ContainerId, change: impl FnOnce(&mut Note)) {
        self.with(|all| change(all.entry(id.clone()).or_default()));
    }

    /// This agent has made a container.
    pub(super) fn made(&self, id: &ContainerId, made: Made) {
        self.change(id, |note| {
            note.stage = Some(Stage::Made);
            note.made = Some(made);
        });
    }

    /// How this agent has made a container, if it has.
    pub(super) fn how_made(&self, id: &ContainerId) -> Option<Made> {
        self.with(|all| all.get(id)?.made.clone())
    }

    /// A start begins, unless another one goes on or there will be none. Gives the stage before.
    pub(super) fn begin_start(&self, id: &ContainerId) -> Option<Stage> {
        self.with(|all| {
            let stage = &mut all.entry(id.clone()).or_default().stage;
            let before = *stage;
            if matches!(before, None | Some(Stage::Made)) {
                *stage = Some(Stage::Starting);
            }
            before
        })
    }

    /// A start has ended, well or not.
    pub(super) fn end_start(&self, id: &ContainerId) {
        self.with(|all| {
            let Some(note) = all.get_mut(id) else { return };
            note.stage = None;
            if note.made.is_none() && !note.out_of_memory {
                all.remove(id);
            }
        });
    }

    /// A container is killed that is not started, unless it is just being started.
    pub(super) fn kill_early(&self, id: &ContainerId, signal: i32) {
        self.change(id, |note| {
            if matches!(note.stage, None | Some(Stage::Made)) {
                note.stage = Some(Stage::Killed(signal));
            }
        });
    }

    /// The signal that killed a container before it was started.
    pub(super) fn killed_early(&self, id: &ContainerId) -> Option<i32> {
        match self.with(|all| all.get(id)?.stage) {
            Some(Stage::Killed(signal)) => Some(signal),
            _ => None,
        }
    }

    /// Memory ran out in a container.
    pub(super) fn ran_out_of_memory(&self, id: &ContainerId) {
        self.change(id, |note| note.out_of_memory = true);
    }

    /// Whether memory ran out in it.
    pub(super) fn is_out_of_memory(&self, id: &ContainerId) -> bool {
        self.with(|all| all.get(id).is_some_and(|note| note.out_of_memory))
    }

    /// The container is gone.
    pub(super) fn forget(&self, id: &ContainerId) {
        self.with(|all| all.remove(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        ContainerId("c8".repeat(32))
    }

    #[test]
    fn a_start_begins_once_and_leaves_nothing_of_a_stranger() {
        let notes = Notes::default();
        assert_eq!(notes.begin_start(&id()), None);
        assert_eq!(notes.begin_start(&id()), Some(Stage::Starting));
        notes.kill_early(&id(), 9);
        assert_eq!(notes.killed_early(&id()), None, "it is being started");
        notes.end_start(&id());
        assert_eq!(notes.with(|all| all.len()), 0);
    }

    #[test]
    fn what_was_made_here_is_known_until_it_is_gone() {
        let notes = Notes::default();
        let made = Made {
            cgroup: Some("/backendai/a".into()),
        };
        notes.made(&id(), made.clone());
        assert_eq!(notes.begin_start(&id()), Some(Stage::Made));
        notes.end_start(&id());
        assert_eq!(notes.how_made(&id()), Some(made));
        assert_eq!(notes.begin_start(&id()), None, "a second start asks");
        notes.forget(&id());
        assert_eq!(notes.how_made(&id()), None);
    }

    #[test]
    fn one_that_was_killed_early_does_not_start() {
        let notes = Notes::default();
        notes.made(&id(), Made { cgroup: None });
        notes.kill_early(&id(), 9);
        assert_eq!(notes.begin_start(&id()), Some(Stage::Killed(9)));
        assert_eq!(notes.killed_early(&id()), Some(9));
    }

    #[test]
    fn that_memory_ran_out_is_known_whatever_else_is() {
        let notes = Notes::default();
        notes.begin_start(&id());
        notes.ran_out_of_memory(&id());
        notes.end_start(&id());
        assert!(notes.is_out_of_memory(&id()));
        notes.forget(&id());
        assert!(!notes.is_out_of_memory(&id()));
    }
}
