//! The promises of the trait, each a test for every engine; those of real containers are looked at from Linux (mounts,
//! namespaces, cgroups, processes) and not from return values.

/// Makes each test once for each engine; those `without fake`, for the reason that stands there, for the real ones. A test
/// of an engine whose daemon the machine lacks says so.
macro_rules! contract {
    ($(with fake { $($all:ident)* })? $(without fake { $($real:ident)* })?) => {
        $(mod fake { $(
            #[tokio::test]
            async fn $all() { super::$all(crate::engine::TestEngine::fake().await).await }
        )* })?
        contract! { real: $($($all)*)? $($($real)*)? }
    };
    (real: $($name:ident)*) => {
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
