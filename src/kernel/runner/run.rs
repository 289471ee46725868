//! One run: its output in segments, bounded in bytes, until somebody takes it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::console::{Console, Segment};
use super::wire::{Mark, Record};
use crate::kernel::files::OutputFiles;

/// Bytes of output that a run holds; above them reading from the runner stops until they are taken.
pub const RUN_LIMIT: usize = 16 * 1024 * 1024;

/// When a call that collects output comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// At a mark only.
    AtMark,
    /// At a mark, or after this time with what there is.
    After(Duration),
    /// At a mark, or as soon as there is anything.
    AsProduced,
}

/// One run of a kernel.
#[derive(Debug)]
pub struct Run {
    /// Its id.
    pub id: String,
    state: Mutex<State>,
    /// Told when output, a mark or its turn arrives.
    changed: Notify,
    /// Told when output was taken.
    pub room: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The last one is open; those before it have their marks.
    segments: VecDeque<Segment>,
    /// Bytes over all segments.
    bytes: usize,
    /// It may send.
    active: bool,
    /// Something was sent for it or arrived for it.
    started: bool,
    /// Its `finished` has arrived.
    finished: bool,
    /// Calls that wait on it.
    callers: usize,
    /// The output folder before it began.
    baseline: OutputFiles,
}

impl Run {
    /// A run that has not begun.
    #[must_use]
    pub fn new(id: String) -> Self {
        Self {
            id,
            state: Mutex::default(),
            changed: Notify::new(),
            room: Notify::new(),
        }
    }

    /// The same run under another id; this one is left empty.
    #[must_use]
    pub fn renamed(&self, id: &str) -> Self {
        let mut run = Self::new(id.to_owned());
        run.state = Mutex::new(std::mem::take(&mut self.state()));
        self.room.notify_waiters();
        run
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Gives it the turn.
    pub fn activate(&self) {
        self.state().active = true;
        self.changed.notify_waiters();
    }

    /// Counts a call that uses it in, or out.
    pub fn caller(&self, enters: bool) {
        let mut state = self.state();
        state.callers = if enters {
            state.callers + 1
        } else {
            state.callers.saturating_sub(1)
        };
    }

    /// Whether nothing was ever sent or received for it and no call uses it: it may be forgotten.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let state = self.state();
        !state.started && state.callers == 0
    }

    /// Whether its `finished` has arrived.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.state().finished
    }

    /// Whether its `finished` has been taken too.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let state = self.state();
        state.finished && state.segments.iter().all(Segment::is_empty)
    }

    /// Notes that something is sent for it, with the output folder as it is before.
    pub fn begin(&self, baseline: Option<OutputFiles>) {
        let mut state = self.state();
        state.started = true;
        if let Some(baseline) = baseline {
            state.baseline = baseline;
        }
    }

    /// The output folder before it began; empty for a run that began before this agent.
    #[must_use]
    pub fn take_baseline(&self) -> OutputFiles {
        std::mem::take(&mut self.state().baseline)
    }

    /// Takes output in, unless the run is full.
    ///
    /// # Errors
    /// Gives the record back when there is no room.
    pub fn add(&self, console: &mut Console, record: Record) -> Result<(), Record> {
        let mut state = self.state();
        if state.bytes >= RUN_LIMIT {
            drop(state);
            self.changed.notify_waiters();
            return Err(record);
        }
        state.started = true;
        state.finished |= matches!(record, Record::Mark(Mark::Finished { .. }));
        if state.segments.back().is_none_or(|last| last.mark.is_some()) {
            state.segments.push_back(Segment::default());
        }
        if let Some(open) = state.segments.back_mut() {
            let before = open.bytes;
            console.add(open, record);
            let grown = open.bytes - before;
            state.bytes += grown;
        }
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Waits until it may send.
    pub async fn turn(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state().active {
                return;
            }
            changed.await;
        }
    }

    /// Waits for a mark or as `flush` says, and takes the output up to there. A run that is full comes back at once,
    /// so that a flood without a mark cannot stop it. Cancelling it loses nothing.
    pub async fn collect(&self, flush: Flush) -> Segment {
        let deadline = match flush {
            Flush::After(time) => Instant::now().checked_add(time),
            Flush::AtMark | Flush::AsProduced => None,
        };
        loop {
            let changed = self.changed.notified();
            if let Some(segment) = self.take(|state| state.is_due(flush)) {
                return segment;
            }
            match deadline {
                None => changed.await,
                Some(deadline) => {
                    if tokio::time::timeout_at(deadline, changed).await.is_err() {
                        return self.take(|_| true).unwrap_or_default();
                    }
                }
            }
        }
    }

    fn take(&self, when: impl FnOnce(&State) -> bool) -> Option<Segment> {
        let mut state = self.state();
        if !when(&state) {
            return None;
        }
        let segment = state.segments.pop_front().unwrap_or_default();
        state.bytes -= segment.bytes;
        drop(state);
        self.room.notify_waiters();
        Some(segment)
    }
}

impl State {
    fn is_due(&self, flush: Flush) -> bool {
        let Some(front) = self.segments.front() else {
            return false;
        };
        front.mark.is_some()
            || self.bytes >= RUN_LIMIT
            || (flush == Flush::AsProduced && !front.is_empty())
    }
}
