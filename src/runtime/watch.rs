//! Calls to an engine's daemon that may take long: given up soon when the daemon answers nothing at all.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

/// An answer that is so young holds for all who want to know.
const YOUNG: Duration = Duration::from_secs(2);

/// Whether a daemon lives, as far as it was asked.
#[derive(Debug, Default)]
pub struct Watch(Mutex<Option<Heard>>);

/// What was last heard of it.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    alive: bool,
}

impl Watch {
    /// Does `work` for as long as the daemon lives, which `ping` asks `every` so often; `None` when it does not answer.
    /// A ping has a limit of its own, and one serves all calls that wait at the time.
    pub async fn while_alive<T, P: Future<Output = bool>>(
        &self,
        every: Duration,
        ping: impl Fn() -> P,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        let mut silent = pin!(async {
            loop {
                sleep(every).await;
                if !self.is_alive(&ping).await {
                    return;
                }
            }
        });
        tokio::select! {
            biased;
            done = &mut work => Some(done),
            () = &mut silent => None,
        }
    }

    async fn is_alive<P: Future<Output = bool>>(&self, ping: impl Fn() -> P) -> bool {
        let mut last = self.0.lock().await;
        if let Some(heard) = *last
            && heard.at.elapsed() < YOUNG
        {
            return heard.alive;
        }
        let alive = ping().await;
        let at = Instant::now();
        *last = Some(Heard { at, alive });
        alive
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const EVERY: Duration = Duration::from_secs(3);

    /// A daemon that answers so many pings.
    struct Daemon {
        answers: u32,
        asked: AtomicU32,
    }

    impl Daemon {
        fn new(answers: u32) -> Self {
            let asked = AtomicU32::new(0);
            Self { answers, asked }
        }

        async fn ping(&self) -> bool {
            self.asked.fetch_add(1, Ordering::Relaxed) < self.answers
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_ends_with_the_daemon_and_not_before() {
        let (watch, daemon) = (Watch::default(), Daemon::new(3));
        let work = async {
            sleep(3 * EVERY + EVERY / 2).await;
            7
        };
        let done = watch.while_alive(EVERY, || daemon.ping(), work).await;
        assert_eq!(done, Some(7));
        let work = watch.while_alive(EVERY, || daemon.ping(), pending::<()>());
        assert_eq!(work.await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_ping_serves_all_that_wait() {
        let (watch, daemon) = (Watch::default(), Daemon::new(2));
        let call = || watch.while_alive(EVERY, || daemon.ping(), pending::<()>());
        let ended = tokio::join!(call(), call(), call());
        assert_eq!(ended, (None, None, None));
        assert_eq!(daemon.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_at_once_asks_nothing() {
        let (watch, daemon) = (Watch::default(), Daemon::new(0));
        let done = watch.while_alive(EVERY, || daemon.ping(), async { 7 });
        assert_eq!(done.await, Some(7));
        assert_eq!(daemon.asked.load(Ordering::Relaxed), 0);
    }
}
