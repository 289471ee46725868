//! The heartbeat: where the agent is, what the node has, which images it holds. Every 3 s, and independent of all
//! other work.

use std::sync::Arc;
use std::time::Duration;

use rmpv::Value;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::event::EventLink;
use super::reply::map;
use crate::agent::request::NodeState;
use crate::manager::Node;
use crate::resource::slot::SlotUnit;

const PERIOD: Duration = Duration::from_secs(3);

/// What the manager must know of the agent itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Address of the host.
    pub host: String,
    /// Port of the RPC server.
    pub port: u16,
    /// Region, for the manager's lists.
    pub region: String,
}

/// The arguments of the heartbeat.
pub fn encode(address: &Address, state: &NodeState) -> Value {
    let endpoint = crate::etcd::join_host_port(&address.host, address.port);
    let slot = |(name, (unit, amount)): (&String, &(SlotUnit, String))| {
        let unit = match unit {
            SlotUnit::Count => "count",
            SlotUnit::Bytes => "bytes",
        };
        let value = Value::Array(vec![unit.into(), amount.as_str().into()]);
        (name.as_str().into(), value)
    };
    let info = map([
        ("ip", address.host.as_str().into()),
        ("region", address.region.as_str().into()),
        ("addr", format!("tcp://{endpoint}").into()),
        (
            "resource_slots",
            Value::Map(state.slots.iter().map(slot).collect()),
        ),
        ("images", Value::Binary(images(&state.images))),
    ]);
    Value::Array(vec![info])
}

/// A raw Snappy block of the msgpack list of images.
fn images(images: &[(String, String)]) -> Vec<u8> {
    let pair = |(name, id): &(String, String)| {
        Value::Array(vec![name.as_str().into(), id.as_str().into()])
    };
    let list = Value::Array(images.iter().map(pair).collect());
    let mut plain = Vec::new();
    rmpv::encode::write_value(&mut plain, &list).expect("a Vec takes all");
    snap::raw::Encoder::new()
        .compress_vec(&plain)
        .expect("a list of images is far below Snappy's 4 GiB")
}

/// Sends the first heartbeat.
pub fn send(node: &dyn Node, address: &Address, link: &EventLink) {
    link.send_heartbeat(&encode(address, &node.state()));
}

/// Tells the log when the manager goes and when it is back.
fn report(link: &EventLink, reported: &mut Option<String>) {
    let problem = link.problem();
    match (&problem, &*reported) {
        (Some(problem), None) => tracing::warn!(problem, "the manager cannot be reached"),
        (None, Some(_)) => tracing::info!("the manager is reached again"),
        _ => return,
    }
    *reported = problem;
}

/// Sends further ones until `stop`.
pub async fn run(
    node: Arc<dyn Node>,
    address: Address,
    link: Arc<EventLink>,
    stop: CancellationToken,
) {
    let mut timer = tokio::time::interval_at(tokio::time::Instant::now() + PERIOD, PERIOD);
    timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut reported = None;
    while stop.run_until_cancelled(timer.tick()).await.is_some() {
        report(&link, &mut reported);
        send(&*node, &address, &link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The recorded heartbeat of a 19.03.3 agent.
    #[test]
    fn the_heartbeat_is_the_recorded_one() {
        let address = Address {
            host: "127.0.0.1".into(),
            port: 26001,
            region: "local".into(),
        };
        let mut state = NodeState::default();
        let slots = [
            ("cpu", SlotUnit::Count, "4"),
            ("mem", SlotUnit::Bytes, "25276514304"),
        ];
        for (name, unit, amount) in slots {
            state.slots.insert(name.into(), (unit, amount.into()));
        }
        let image = "index.docker.io/lablup/python:3.6-ubuntu18.04";
        state.images = vec![(image.into(), "sha256:cfgdigest".into())];
        let mut body = Vec::new();
        rmpv::encode::write_value(&mut body, &encode(&address, &state)).expect("a Vec takes all");
        let mut expected = b"\x91\x85\xa2ip\xa9127.0.0.1\xa6region\xa5local".to_vec();
        expected.extend(b"\xa4addr\xb5tcp://127.0.0.1:26001\xaeresource_slots\x82");
        expected.extend(b"\xa3cpu\x92\xa5count\xa14\xa3mem\x92\xa5bytes\xab25276514304");
        expected.extend(b"\xa6images\xc4\x45\x42\xf0\x41\x91\x92\xd9\x2d");
        expected.extend(image.as_bytes());
        expected.extend(b"\xb0sha256:cfgdigest");
        assert_eq!(body, expected);
    }

    #[test]
    fn no_images_are_three_bytes() {
        assert_eq!(images(&[]), b"\x01\x00\x90");
    }
}
