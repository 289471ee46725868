//! One writer for the rules of many containers that come and go at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::store::Store;
use super::{NetworkError, firewall};

/// Brings the rules to what the records say. Who asks while another writes waits, and is served with all who wait by the
/// next write: Linux takes as long for one container's ports as for a hundred.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// How often was asked.
    asked: AtomicU64,
    /// Up to which asking the rules are written.
    written: Mutex<u64>,
    /// Whether another program's filter lets our traffic pass, as far as was looked.
    open: AtomicBool,
}

impl Rules {
    /// Returns when the rules say what the records said at the call, or later ones. With the last record that is not
    /// leaving the table goes.
    pub(super) fn follow(&self, store: &Store) -> Result<(), NetworkError> {
        let ours = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written >= ours {
            return Ok(());
        }
        // Whoever has asked by now has written its record before.
        let served = self.asked.load(Ordering::SeqCst);
        self.write(store)?;
        *written = served;
        Ok(())
    }

    /// Has the next write look at other programs' filters again.
    pub(super) fn look_again(&self) {
        self.open.store(false, Ordering::SeqCst);
    }

    fn write(&self, store: &Store) -> Result<(), NetworkError> {
        // Other processes write from the same records.
        let _alone = store.lock_rules()?;
        let records = store.lock()?;
        let staying = records.all()?.into_iter();
        let staying = staying.filter(|(_, record)| !record.leaving);
        let staying: Vec<_> = staying
            .map(|(id, record)| (id, record.attachment))
            .collect();
        let subnet = match staying.is_empty() {
            true => None,
            false => Some(store.subnet()?),
        };
        drop(records);
        let Some(subnet) = subnet else {
            self.look_again();
            return firewall::remove(&store.name);
        };
        firewall::put(&store.name, subnet, &staying)?;
        if !self.open.swap(true, Ordering::SeqCst) {
            firewall::open_forward(&store.name).inspect_err(|_| self.look_again())?;
        }
        Ok(())
    }
}
