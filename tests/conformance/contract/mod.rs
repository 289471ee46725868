//! The promises of the trait, each a test for every engine: `life` for the engine in memory too, the others for engines
//! of real containers, looked at from Linux (mounts, namespaces, cgroups, processes) and not from return values.

/// Makes each test once for each engine. A test of an engine whose daemon the machine lacks says so.
macro_rules! contract {
    (with fake: $($name:ident)*) => {
        mod fake { $(
            #[tokio::test]
            async fn $name() { super::$name(crate::engine::TestEngine::fake().await).await }
        )* }
        contract! { $($name)* }
    };
    ($($name:ident)*) => {
        mod youki { $(
            #[tokio::test]
            async fn $name() { super::$name(crate::engine::TestEngine::youki().await).await }
        )* }
        mod containerd { $(
            #[tokio::test]
            async fn $name() {
                if let Some(engine) = crate::engine::TestEngine::containerd().await {
                    super::$name(engine).await;
                }
            }
        )* }
        mod docker { $(
            #[tokio::test]
            async fn $name() {
                if let Some(engine) = crate::engine::TestEngine::docker().await {
                    super::$name(engine).await;
                }
            }
        )* }
    };
}

mod agents;
mod exec;
mod follow;
mod inside;
mod life;
mod limits;
mod logs;
mod mounts;
mod network;
mod refused;
mod rights;
mod signals;
