//! The life of kernels on real engines: the agent, an engine and the runner inside together, asked as a manager asks. Each
//! test runs on every engine; needs root, busybox-static, for Python's image (once) mmdebstrap, and an engine's daemon.

/// Makes each test once for each engine. A test of an engine whose daemon the machine lacks says so.
macro_rules! on_every_engine {
    ($($name:ident)*) => {
        on_daemons! { $($name)* }
        mod youki { $(
            #[tokio::test]
            async fn $name() { super::$name(crate::node::TestNode::youki().await).await }
        )* }
    };
}

/// Makes each test once for each engine that has a daemon.
macro_rules! on_daemons {
    ($($name:ident)*) => {
        mod containerd { $(
            #[tokio::test]
            async fn $name() {
                if let Some(node) = crate::node::TestNode::containerd().await {
                    super::$name(node).await;
                }
            }
        )* }
        mod docker { $(
            #[tokio::test]
            async fn $name() {
                if let Some(node) = crate::node::TestNode::docker().await {
                    super::$name(node).await;
                }
            }
        )* }
    };
}

#[path = "../daemons/mod.rs"]
mod daemons;

mod ends;
mod engines;
mod files;
mod images;
mod inside;
mod life;
mod node;
mod python;
mod residue;
mod runs;
