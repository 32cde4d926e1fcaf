//! Says in the log what is stuck: a reader that waits for a server does not know for which.

use super::{Attachments, Registry};
use std::sync::Arc;
use std::time::Duration;

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// From when on a wait is worth a line.
const LONG: u64 = 5;

/// Looks at everything that is served, for as long as it runs.
pub(crate) async fn watch(registry: Arc<Registry>, attachments: Option<Arc<Attachments>>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let exports = registry.open_exports().into_iter().map(|export| (export.name().to_owned(), export));
        let devices = attachments.iter().flat_map(|attachments| attachments.exports());
        for (name, export) in exports.chain(devices) {
            if let Some(waiting) = export.waiting().filter(|waiting| waiting.seconds >= LONG) {
                tracing::warn!(
                    "{name}: {} reads wait, the oldest for {} s at {:#x}, for {}",
                    waiting.reads,
                    waiting.seconds,
                    waiting.offset,
                    export.image().location()
                );
            }
        }
    }
}
