//! Work that takes long: how far it is, and an interrupt that ends it.

use crate::error::{Error, Result};
use crate::output;
use sr::Work;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Runs `run`, showing how far it is, until it ends or sees that SIGINT or SIGTERM came.
pub(super) fn watched<T>(what: &str, run: impl FnOnce(&mut Work<'_>) -> sr::Result<T>) -> Result<T> {
    let runtime = crate::cli::runtime()?;
    let stop = stopped(&runtime)?;
    let bar = output::progress(0, what);
    let mut progress = |done, total| bar.set(done, total);
    let outcome = run(&mut Work { progress: &mut progress, cancelled: &|| stop.load(Ordering::Relaxed) });
    bar.clear();
    Ok(outcome?)
}

/// Becomes true when the process is asked to stop, which no longer ends it by itself.
pub(super) fn stopped(runtime: &Runtime) -> Result<Arc<AtomicBool>> {
    let _entered = runtime.enter();
    let failed = |error| Error::failed(format!("cannot handle signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let stop = Arc::new(AtomicBool::new(false));
    let set = stop.clone();
    runtime.spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        set.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}
