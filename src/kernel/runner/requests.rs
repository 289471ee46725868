//! Requests that the runner answers outside of any run: services and completions.
//!
//! Answers come in the order of the requests; a runner that names the service in its answer is matched by name. The
//! answer to a request that was given up is dropped and does not reach the next one (19.03 mixes them up).

use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::Value;
use tokio::sync::oneshot;

/// Unanswered requests are kept up to this number: the stock runner answers no completion at all.
const IN_FLIGHT: usize = 128;

/// Requests in flight, oldest first.
#[derive(Debug, Default)]
pub struct Requests(Mutex<VecDeque<Waiting>>);

#[derive(Debug)]
struct Waiting {
    name: String,
    answer: oneshot::Sender<Value>,
}

impl Requests {
    /// Announces a request that is about to be sent, and gives the place where its answer will arrive.
    pub fn expect(&self, name: &str) -> oneshot::Receiver<Value> {
        let (answer, receiver) = oneshot::channel();
        let name = name.to_owned();
        let mut waiting = self.0.lock().expect("no panic while held");
        if waiting.len() == IN_FLIGHT {
            waiting.pop_front();
        }
        waiting.push_back(Waiting { name, answer });
        receiver
    }

    /// Hands an answer to its request; one that nobody waits for is dropped.
    pub fn answer(&self, value: Value) {
        let mut waiting = self.0.lock().expect("no panic while held");
        let named = value.get("name").and_then(Value::as_str);
        let index = named.and_then(|name| waiting.iter().position(|it| it.name == name));
        let Some(request) = waiting.remove(index.unwrap_or(0)) else {
            return;
        };
        drop(waiting);
        // The caller may have given up.
        let _ = request.answer.send(value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_come_in_the_order_of_the_requests() {
        let requests = Requests::default();
        let mut first = requests.expect("a");
        let mut second = requests.expect("b");
        requests.answer(json!({"status": "started"}));
        requests.answer(json!({"status": "running"}));
        assert_eq!(first.try_recv(), Ok(json!({"status": "started"})));
        assert_eq!(second.try_recv(), Ok(json!({"status": "running"})));
    }

    #[test]
    fn a_named_answer_finds_its_request() {
        let requests = Requests::default();
        let mut first = requests.expect("a");
        let mut second = requests.expect("b");
        requests.answer(json!({"status": "started", "name": "b"}));
        assert!(first.try_recv().is_err());
        assert!(second.try_recv().is_ok());
    }

    #[test]
    fn a_late_answer_does_not_reach_the_next_request() {
        let requests = Requests::default();
        drop(requests.expect("slow"));
        let mut next = requests.expect("next");
        requests.answer(json!({"status": "late"}));
        assert!(next.try_recv().is_err());
        requests.answer(json!({"status": "started"}));
        assert_eq!(next.try_recv(), Ok(json!({"status": "started"})));
    }
}
