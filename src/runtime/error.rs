//! What goes wrong in engines, and how it is told.

use super::ContainerId;

/// Any cause of a failure below the runtime.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What went wrong in an engine, cut by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Forget the container: the engine has already done so.
    #[error("no container {0}")]
    NotFound(ContainerId),
    /// Pull or import it, then ask again.
    #[error("image {0} is not present; pull or import it first")]
    ImageMissing(String),
    /// The request itself is wrong: change it. The text names the part.
    #[error("{0}")]
    Invalid(String),
    /// Wait, then ask again: the engine does not answer.
    #[error("{engine} is unreachable")]
    Unavailable {
        /// Name of the engine.
        engine: &'static str,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// Report it: there is nothing else to do.
    #[error("{engine}: {action} failed: {source}")]
    Engine {
        /// Name of the engine.
        engine: &'static str,
        /// What was being done, with the object's name.
        action: String,
        /// Why.
        #[source]
        source: BoxError,
    },
}

impl RuntimeError {
    /// The error of an engine that failed at `action`.
    pub fn engine(
        engine: &'static str,
        action: impl Into<String>,
        source: impl Into<BoxError>,
    ) -> Self {
        Self::Engine {
            engine,
            action: action.into(),
            source: source.into(),
        }
    }
}

/// Does work that blocks, off the async threads. An error that is cut already stays what it is.
///
/// # Errors
/// Those of the work.
pub async fn blocking<T: Send + 'static>(
    engine: &'static str,
    action: impl Into<String>,
    work: impl FnOnce() -> Result<T, BoxError> + Send + 'static,
) -> Result<T, RuntimeError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|error| Err(error.into()));
    done.map_err(|error| match error.downcast::<RuntimeError>() {
        Ok(error) => *error,
        Err(error) => RuntimeError::engine(engine, action, error),
    })
}

/// An error and its causes in one line; a cause that is told already is left out.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |it| it.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_that_is_cut_already_stays_what_it_is() {
        let unknown = || RuntimeError::NotFound(ContainerId("a".to_owned()));
        let cut = blocking("fake", "looking", move || Err::<(), _>(unknown().into())).await;
        assert!(matches!(cut, Err(RuntimeError::NotFound(_))), "{cut:?}");
        let other = blocking("fake", "looking", || Err::<(), _>("no".into())).await;
        let text = other.expect_err("it failed").to_string();
        assert_eq!(text, "fake: looking failed: no");
    }

    #[test]
    fn causes_are_told_once() {
        let disk = std::io::Error::other("disk");
        let told = RuntimeError::engine("fake", "looking", disk);
        assert_eq!(chain(&told), "fake: looking failed: disk");
        let engine = "fake";
        let source = "no socket".into();
        let away = RuntimeError::Unavailable { engine, source };
        assert_eq!(chain(&away), "fake is unreachable: no socket");
    }
}
